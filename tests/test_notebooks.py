"""The notebooks run from top to bottom, on the store of the main job."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from tests.conftest import ROOT

_SMALL = {"NOTEBOOK_BUDGET": "steps:30", "NOTEBOOK_DRAWS": "16"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_something(path, store):
    done = subprocess.run(
        [sys.executable, str(ROOT / "notebooks" / "execute.py"), "--out", ".", str(path)],
        cwd=store.folder,
        env=store.environment() | _SMALL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert _kinds(store.folder / path.name) == _kinds(path), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_there_small_and_without_paths_of_a_machine(path):
    assert "image/png" in _kinds(path)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    for trace in ("/home/", "/root/", "/tmp/", "/Users/", str(ROOT)):
        assert trace not in text


def _kinds(path):
    """The kinds of output of a notebook, in their order."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [kind for output in outputs for kind in sorted(output.get("data", ["text"]))]
