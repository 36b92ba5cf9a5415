"""`train` on CBIS-DDSM and VinDr-Mammo as they are distributed: nothing private is written.

For INbreast see `test_private_data.py`.
"""

import pytest

from tests.conftest import SMALL
from tests.planted_markers import LEAK, MARKER, plant_in_headers, plant_in_unused_columns

TABLES = {
    "cbis_ddsm": (["mass_case_description_train_set.csv"], ","),
    "vindr_mammo": (["breast-level_annotations.csv", "metadata.csv"], ","),
}
SYNTAXES = {"cbis_ddsm": "native", "vindr_mammo": "jpegls"}


@pytest.fixture(scope="module", params=TABLES)
def trained(request, tmp_path_factory, make_workspace):
    """A release with markers wherever it can still be read, and a model trained on it."""
    dataset = request.param
    workspace = make_workspace(tmp_path_factory.mktemp(dataset))
    release = workspace.folder / "release"
    written = workspace.module(
        "phantom", "--layout", dataset, "--out", str(release), "--patients", "24",
        "--syntax", SYNTAXES[dataset], "--workers", "1",
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    plant_in_headers([*release.rglob("*.dcm"), *release.rglob("*.dicom")])
    names, delimiter = TABLES[dataset]
    planted = sum(plant_in_unused_columns(release / name, delimiter) for name in names)
    assert planted > 0
    parameters = SMALL | {"budget": "steps:8", "validate_every": "4"}
    arguments = [part for k, v in parameters.items() for part in (f"--{k}", v)]
    done = workspace.module(
        "train", *arguments, "--dataset", dataset, "--data_dir", str(release), "--input", "whole",
        "--cache_dir", str(workspace.folder / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return dataset, workspace, done


def test_a_model_is_trained_and_registered(trained):
    dataset, workspace, _ = trained
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset"] == dataset
    assert workspace.client.search_model_versions(f"name='sgc-{dataset}'")


def test_nothing_private_is_in_anything_that_the_run_wrote(trained):
    _, workspace, done = trained
    release = workspace.folder / "release"
    leaks, searched = {}, 0
    for path in workspace.folder.rglob("*"):
        if release in path.parents or not path.is_file():
            continue
        searched += 1
        # MLflow's own ids have the form of VinDr-Mammo's, so only markers are looked for.
        if MARKER.encode() in path.read_bytes():
            leaks[path.name] = MARKER
    assert searched > 50
    assert leaks == {}
    assert not LEAK.search(done.stdout + _without_run_ids(done.stderr, workspace))


def _without_run_ids(text, workspace):
    for run in workspace.runs():
        text = text.replace(run.info.run_id, "")
    return text
