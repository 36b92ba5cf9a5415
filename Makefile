# `make help` lists the targets. Everything runs in .venv, which is made on first use.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A file of tests per process, and one thread in each: more would only wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
CORE_TESTS := $(patsubst %,tests/test_%.py,analytic augmentation calibration classifier comparison \
	curves evaluation evidence invariants likelihood mathematics metrics noise_levels objective prevalence \
	probability_flow published_defects ranks sampling score_network sde training transfer typicality \
	uncertainty)
.DEFAULT_GOAL := help

.PHONY: help env services train test soak coverage mutants audit lint format ui docs notebooks clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

env: $(VENV)/.installed  ## make the environment in .venv

services:  ## install what the tests need beside Python (PostgreSQL, Chromium), where possible
	tests/install_services.sh

train: env  ## the main job: fit, evaluate and register the classifier on the built-in phantom
	PATH="$(CURDIR)/$(BIN):$$PATH" mlflow run . -e train --env-manager local

test: env services lint  ## all tests but the long campaigns
	$(PYTEST) -m "not slow"

soak: env services  ## the long campaigns (kills, faults, fuzzing, full grids)
	$(PYTEST) -m slow --dist load --timeout 7200

coverage: env  ## lines and branches of the core that its tests run; at least 95 % must be (3 minutes)
	$(PYTEST) -m "not slow" --cov --cov-report=term-missing:skip-covered $(CORE_TESTS)

mutants: env  ## change the core's code in every way the tests should notice (20 minutes)
	mkdir -p mutants
	PYTHONPATH="$(CURDIR)/mutants" OMP_NUM_THREADS=1 $(BIN)/mutmut run

audit: env  ## known vulnerabilities of the dependencies (asks PyPI), and of our own code
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive sgc_experiments baselines
	$(BIN)/pip-audit --skip-editable

lint: env  ## style, spelling, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: env  ## open the MLflow UI on this folder's results (http://127.0.0.1:5000)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

docs: env  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

notebooks: env  ## run the notebooks on this folder's results, and store their outputs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean:  ## remove the environment; results and caches stay
	rm -rf $(VENV) *.egg-info
