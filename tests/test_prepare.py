"""`prepare` end to end: the report tells what there is and what was left out."""

import mlflow
import pandas as pd
import pytest

from tests.conftest import SMALL


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_workspace):
    workspace = make_workspace(tmp_path_factory.mktemp("prepared"))
    done = workspace.project(
        "prepare", phantom_patients=SMALL["phantom_patients"], image_size="32", examples="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = workspace.runs()
    folder = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id,
        dst_path=str(workspace.folder / "artifacts"),
        tracking_uri=workspace.tracking_uri,
    )
    return run, folder


def test_counts_agree_with_the_split_and_the_metrics(prepared):
    run, folder = prepared
    counts, split = pd.read_csv(f"{folder}/counts.csv"), pd.read_csv(f"{folder}/split.csv")
    of_subset = counts[counts["property"] == "subset"].groupby("value")["images"].sum()
    assert of_subset.to_dict() == split["subset"].value_counts().to_dict()
    assert counts.groupby("property")["images"].sum().unique().tolist() == [len(split)]
    assert run.data.metrics["images"] == len(split)


def test_what_was_left_out_has_a_reason(prepared):
    run, folder = prepared
    quarantine = pd.read_csv(f"{folder}/quarantine.csv")
    reasons = pd.read_csv(f"{folder}/quarantine_reasons.csv")
    assert reasons["images"].sum() == len(quarantine) == run.data.metrics["quarantined"] > 0
    assert "left out because" in run.data.tags["mlflow.note.content"]


def test_the_stages_are_shown(prepared):
    _, folder = prepared
    with open(f"{folder}/figures/preparation_stages.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
