"""Nothing private is in anything that any entry point writes, says or answers.

A release with markers in every header field and every unused column, and patients' tokens in its
file names, goes through all entry points; then every file but the release is searched.
"""

import contextlib
import io
import logging
import re

import mlflow
import pandas as pd
import pytest

from sgc_experiments.__main__ import ENTRY_POINTS, main
from sgc_experiments.data.phantom.inbreast_layout import write_inbreast
from tests.conftest import SMALL
from tests.planted_markers import MARKER, UID_MARKER, plant_in_headers, plant_in_unused_columns

# They read no patient's data, but write invented ones.
WITHOUT_PATIENTS = {"phantom", "yardsticks"}
QUICK = SMALL | {
    "input": "whole",
    "budget": "steps:4",
    "validate_every": "4",
    "bootstrap": "100",
    "workers": "1",
    "channels": "8,16",
    "evaluations": "8",
}
del QUICK["phantom_patients"]
IMAGES = {"input": "whole", "image_size": "32", "workers": "1"}
SIMPLE = {"models": "logistic_regression,majority"}
CHAMPION = {"model_uri": "models:/sgc-inbreast@champion"}
COMMANDS = {
    "prepare": IMAGES | {"examples": "1"},
    "train": QUICK,
    "baseline": QUICK | SIMPLE,
    "compare": {"bootstrap": "100"},
    "evaluate": CHAMPION | {"bootstrap": "100", "workers": "1"},
    "predict": CHAMPION | {"workers": "1"},
    "tune": QUICK
    | {"trials": "1", "refit_seeds": "1", "trial_budget": "steps:4", "search": "evaluations=8|16"},
    "fewshot_ablation": QUICK | SIMPLE | {"sizes": "all", "seeds": "0"},
}


class Recorder(logging.Handler):
    """Every log record, of every logger and level, as `-v` and `-vv` would show it."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """An INbreast release full of markers, one of whose files cannot be decoded."""
    root = tmp_path_factory.mktemp("planted") / "release"
    write_inbreast(root, patients=24, seed=3, difficulty="standard", workers=1, progress=False)
    files = sorted(root.rglob("*.dcm"))
    plant_in_headers(files)
    files[0].write_bytes(files[0].read_bytes()[:-1000])
    (table,) = root.rglob("INbreast.csv")
    assert plant_in_unused_columns(table, ";") > 0
    return root


@pytest.fixture(scope="module")
def private(release):
    """What must not be found: the markers, and the patients' tokens."""
    tokens = {path.name.split("_")[1] for path in release.rglob("*.dcm")}
    assert len(tokens) == 24
    return re.compile("|".join([MARKER, re.escape(UID_MARKER), *sorted(tokens)]))


@pytest.fixture(scope="module")
def said(tmp_path_factory, make_workspace, release):
    """A workspace in which all entry points ran on the release, and what they said."""
    workspace = make_workspace(tmp_path_factory.mktemp("private"))
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in workspace.environment().items():
            patch.setenv(name, value)
        patch.setenv("SGC_CACHE_DIR", str(workspace.folder / "cache"))
        patch.chdir(workspace.folder)
        mlflow.set_tracking_uri(workspace.tracking_uri)
        of_release = {"data_dir": str(release), "dataset": "inbreast"}
        for name, parameters in COMMANDS.items():
            if name == "predict":
                parameters = parameters | {"images": str(release), "out": str(release / "out.csv")}
            elif name != "compare":
                parameters = parameters | of_release
            told[name] = run(name, parameters)
    return workspace, told


def run(name, parameters):
    """Run an entry point; returns its log at every level and its output."""
    recorder, output = Recorder(), io.StringIO()
    root = logging.getLogger()
    level = root.level
    root.addHandler(recorder)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = main([name, *(part for k, v in parameters.items() for part in (f"--{k}", v))])
    finally:
        root.removeHandler(recorder)
        root.setLevel(level)
    text = "\n".join([*recorder.lines, output.getvalue()])
    assert status == 0, text[-3000:]
    return text


def content_of(path):
    """The text of a file, whose compression could hide it."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    return path.read_bytes().decode("latin-1")


def found(private, texts):
    return {where: hit[0] for where, text in texts.items() if (hit := private.search(text))}


def test_every_entry_point_is_among_them():
    assert set(COMMANDS) == set(ENTRY_POINTS) - WITHOUT_PATIENTS


def test_the_search_finds_what_is_there(private, release):
    header = next(release.rglob("*.dcm"))
    assert found(private, {"file": content_of(header), "name": header.name}).keys() == {
        "file",
        "name",
    }


def test_nothing_private_is_in_anything_that_was_written(said, private):
    workspace, _ = said
    files = {
        str(path.relative_to(workspace.folder)): path
        for path in workspace.folder.rglob("*")
        if path.is_file()
    }
    kinds = {path.suffix for path in files.values()}
    assert kinds >= {".db", ".html", ".csv", ".png", ".npy", ".json", ".parquet", ".safetensors"}
    assert found(private, {name: name for name in files}) == {}
    assert found(private, {name: content_of(path) for name, path in files.items()}) == {}


def test_nothing_private_is_in_what_was_said(said, private):
    _, told = said
    assert "quarantine" in told["prepare"] or "left out" in told["prepare"]
    assert all(len(text) > 100 for text in told.values())
    assert found(private, told) == {}


def test_a_table_of_predictions_names_files_and_nothing_of_what_is_in_them(said, release):
    scored = (release / "out.csv").read_text()
    assert scored.count(".dcm") > 24
    assert MARKER not in scored


def test_nothing_private_is_in_what_a_served_model_answers(said, private, release):
    workspace, _ = said
    mlflow.set_tracking_uri(workspace.tracking_uri)
    model = mlflow.pyfunc.load_model(CHAMPION["model_uri"])
    broken, sound = sorted(release.rglob("*.dcm"))[:2]
    answer = model.predict(pd.DataFrame({"image": [sound.read_bytes()]}), params={"map": True})
    assert found(private, {"answer": answer.to_csv()}) == {}
    try:
        answer = model.predict(pd.DataFrame({"image": [broken.read_bytes()]}))
        told = answer.to_csv()
    except Exception as error:
        told = repr(error) + repr(error.__cause__)
    assert found(private, {"answer": told}) == {}
