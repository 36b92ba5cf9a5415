"""The worked examples of CONTRIBUTING.md do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import get_args

import pytest

from sgc_experiments.config import TrainConfig
from sgc_experiments.config.types import Dataset
from sgc_experiments.data import READERS
from sgc_experiments.experiments import model_card, models
from sgc_experiments.sde import SDES
from tests.conftest import ROOT
from tests.own_images import write_own_images

_SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    title: "".join(_CODE.findall(text))
    for title, text in _SECTION.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
}


def test_what_there_is_to_add_has_an_example():
    assert set(EXAMPLES) == {
        "Add a dataset", "Add an SDE", "Add a baseline", "Add an entry point"
    }  # fmt: skip
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("title", sorted(EXAMPLES))
def test_an_example_runs(title, workspace):
    write_own_images(workspace.folder / "clinic", patients=6, classes=("cyst", "carcinoma"))
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[title]],
        cwd=workspace.folder,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if title == "Add an entry point":
        (run,) = workspace.runs()
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"images_carcinoma": 6, "images_cyst": 6}
        assert run.data.params["config.dataset"] == "table"


def test_the_lists_that_it_names_agree():
    assert set(get_args(Dataset)) == set(READERS) == set(model_card._LABELS)
    sdes = get_args(TrainConfig.model_fields["sde"].annotation)
    assert set(sdes) == set(SDES) == set(models._SDE_PARAMETERS)
    assert {name: models._simple(name).kind for name in models._SIMPLE} == {
        name: name for name in models._SIMPLE
    }
