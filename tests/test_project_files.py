"""MLproject, the two environment files, pyproject.toml and the configuration must not drift."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sgc_experiments.__main__ import ENTRY_POINTS
from sgc_experiments.experiments import COMMANDS, CONFIGS
from sgc_experiments.tracked_run import SERVING_REQUIREMENTS

ROOT = Path(__file__).parents[1]


def _yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_both_environment_files_list_the_dependencies_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = _yaml("conda.yaml")["dependencies"]
    assert _yaml("python_env.yaml")["dependencies"] == project["dependencies"]
    assert conda[-1]["pip"] == project["dependencies"]
    assert f"python={_yaml('python_env.yaml')['python']}" in conda


def test_every_dependency_is_pinned_and_installed_at_its_pin():
    from importlib.metadata import version

    for requirement in _yaml("python_env.yaml")["dependencies"]:
        name, pin = requirement.split("==")
        assert version(name) == pin


def test_every_entry_point_of_the_command_line_is_in_mlproject():
    commands = {name: e["command"] for name, e in _yaml("MLproject")["entry_points"].items()}
    assert commands.pop("main") == commands["train"]
    assert commands == {name: f"python -m sgc_experiments {name}" for name in CONFIGS}
    assert set(COMMANDS) == set(ENTRY_POINTS)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["compare", "--help"]])
def test_help_answers_without_importing_the_heavy_libraries(arguments):
    code = (
        "import sys, contextlib; from sgc_experiments.__main__ import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments})\n"
        "assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert arguments[0].strip("-") in done.stdout


def test_a_run_that_finds_no_data_has_not_waited_for_what_comes_later():
    code = (
        "import sys, sgc_experiments.experiments.train;"
        "later = {'timm', 'sklearn', 'scipy.stats', 'matplotlib', 'torchdiffeq'};"
        "assert not later & set(sys.modules), later & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_served_model_lists_every_dependency_that_it_imports():
    code = (
        "import sys, json, sgc_experiments.serving, baselines.timm_classifier, baselines.simple;"
        "import torchdiffeq;"  # by one solver alone
        "from importlib.metadata import packages_distributions;"
        "tops = {name.split('.')[0] for name in sys.modules};"
        "owners = packages_distributions();"
        "print(json.dumps(sorted({d for top in tops for d in owners.get(top, [])})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    imported = {name.lower().replace("_", "-") for name in json.loads(done.stdout.splitlines()[-1])}
    dependencies = {
        line.split("==")[0].lower() for line in _yaml("python_env.yaml")["dependencies"]
    }
    # Pulled in by those that are listed: by MLflow, and pydantic by pydantic-settings.
    indirect = {"psutil", "pyarrow", "pydantic"}
    # Loaded in the decode process, when a file needs them.
    decoders = {"dicomsdl", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"}
    listed = {name.lower() for name in SERVING_REQUIREMENTS}
    assert imported & dependencies - indirect | decoders == listed
