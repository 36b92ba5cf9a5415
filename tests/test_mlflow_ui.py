"""What a researcher finds in the MLflow UI without searching, in a real browser."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SMALL
from tests.mlflow_ui import browser_on, require_chromium

_SGC = "sgc-phantom-roi32-seed0 phantom_patients=40 budget=steps:60"


@pytest.fixture(scope="module")
def workspace(store):
    """The main job, with a comparison of two simple models besides."""
    require_chromium()
    small = [part for name, value in SMALL.items() for part in (f"--{name}", value)]
    done = store.module("baseline", *small, "--models", "logistic_regression,majority")
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def browser(workspace):
    with browser_on(workspace) as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(workspace):
    """The newest run of each model, and of each comparison."""
    return {r.data.tags.get("model", r.data.tags["entry_point"]): r for r in workspace.runs()[::-1]}


def test_runs_can_be_told_apart_in_the_list(browser):
    shown = browser.open("experiments/0/runs", _SGC, "baseline-phantom-roi32-seed0", "phantom-t")
    assert shown.count(_SGC) == 2  # the main job ran twice


def test_a_run_opens_with_its_model_card_its_data_and_its_results(browser, runs):
    run = runs["sgc"]
    auc = f"{run.data.metrics['test_auc']:.3f}"
    browser.open(
        f"experiments/0/runs/{run.info.run_id}",
        *("research, not for diagnosis", f"AUC on test {auc}", "Show more"),
        *("phantom-train", run.data.tags["split_digest"][:8], "config.log_snr_max", "test_auc"),
    )
    browser.click("Show more")
    browser.wait_for("Calibration", "Known failure modes", "95 % interval", "majority class")


@pytest.mark.parametrize(
    ("model", "figure"),
    [
        ("sgc", "explanations"),
        ("sgc", "roc"),
        ("majority", "confusion"),
        ("baseline", "comparison_roc"),
    ],
)
def test_figures_open_in_the_artifact_view(browser, runs, model, figure):
    run = runs[model].info.run_id
    browser.open(f"experiments/0/runs/{run}/artifacts/figures/{figure}.png", f"{figure}.png")
    width, height = browser.wait_for_picture()
    assert width > 400
    assert height > 300


def test_metrics_have_the_same_names_for_all_models(runs):
    names = [
        {name for name in runs[model].data.metrics if name.startswith(("test_", "val_"))}
        for model in ("sgc", "logistic_regression", "majority")
    ]
    assert names[0] >= names[1] >= names[2]
    # A constant answer has no confidence intervals of some metrics; all else is the same.
    assert {"test_auc", "test_brier", "test_balanced_accuracy", "val_auc"} <= names[2]


def test_compare_shows_the_parameters_that_differ(browser, runs):
    pair = json.dumps([runs["sgc"].info.run_id, runs["majority"].info.run_id])
    browser.open(
        f'compare-runs?runs={pair}&experiments=["0"]', "Show diff only", "config.evaluations"
    )
    browser.click("Show diff only")
    browser.wait_without("config.evaluations")
    browser.wait_for("config.model", "config.learning_rate")


def test_the_registry_says_what_a_model_is(browser, runs):
    digest = runs["sgc"].data.tags["split_digest"]
    browser.open("models", "sgc-phantom", "majority-phantom", "champion")
    browser.open(
        "models/sgc-phantom",
        *("best validation AUC", "research, not for diagnosis", "Intended use"),
        *("champion", "Version 2", digest[:12], "val_auc"),
    )
    browser.open(
        "models/sgc-phantom/versions/1",
        *("champion", "Intended use", "Known failure modes", "95 % interval", "n_train_patients"),
    )


def test_a_comparison_opens_with_its_result(browser, runs):
    browser.open(
        f"experiments/0/runs/{runs['baseline'].info.run_id}", "for research, not for diagnosis"
    )
    browser.click("Show more")
    browser.wait_for("AUC less that of logistic_regression")
