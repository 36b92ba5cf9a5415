"""`dataset=table` from the command line: three classes, four file formats, every entry point."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest

from sgc_experiments.data.schema import hashed
from tests.own_images import CLASSES, write_own_images

SETTINGS = {
    "dataset": "table",
    "classes": ",".join(CLASSES),
    "image_size": "16",
    "budget": "steps:12",
    "batch_size": "16",
    "channels": "16,32",
    "validate_every": "6",
    "bootstrap": "100",
    "workers": "1",
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory, make_workspace):
    """A generative and a discriminative model fitted on the same table, and compared."""
    workspace = make_workspace(tmp_path_factory.mktemp("own"))
    table = write_own_images(workspace.folder / "images", patients=10)
    done = workspace.project(
        "baseline", models="sgc,logistic_regression", table=str(table), **SETTINGS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace


def artifact(workspace, run, name):
    path = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path=name, tracking_uri=workspace.tracking_uri
    )
    return pd.read_csv(path)


def runs(workspace, entry_point):
    return [r for r in workspace.runs() if r.data.tags["entry_point"] == entry_point]


def test_three_classes_are_evaluated_against_each_other(compared):
    for run in runs(compared, "train"):
        assert run.data.metrics["test_macro_auc_low"] <= run.data.metrics["test_macro_auc"]
        predictions = artifact(compared, run, "predictions.csv")
        columns = [f"probability_{name}" for name in CLASSES]
        assert predictions[columns].sum(axis=1).between(0.999, 1.001).all()
        assert set(predictions["label"]) == {0, 1, 2}
        table = artifact(compared, run, "test_metrics.csv").set_index("metric")
        assert table.loc["macro_auc", "majority_class"] == 0.5
        assert "macro AUC" in run.data.tags["mlflow.note.content"]
        assert all(name in run.data.tags["mlflow.note.content"] for name in CLASSES)


def test_models_are_registered_with_the_macro_auc(compared):
    version = compared.client.get_model_version_by_alias("sgc-table", "champion")
    (run,) = (r for r in runs(compared, "train") if r.data.tags["model"] == "sgc")
    assert float(version.tags["test_auc"]) == run.data.metrics["test_macro_auc"]


def test_the_comparison_has_a_curve_for_each_class(compared):
    (run,) = runs(compared, "baseline")
    assert set(artifact(compared, run, "differences.csv")["metric"]) == {
        "macro_auc", "balanced_accuracy", "brier",
    }  # fmt: skip
    names = {f.path for f in compared.client.list_artifacts(run.info.run_id, "figures")}
    assert {f"figures/comparison_roc_{name}.png" for name in CLASSES} <= names


def test_neither_the_tables_place_nor_its_patients_are_in_the_runs(compared):
    for path in (compared.folder / "mlruns").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"site-" not in content, path
            assert b"image_0" not in content, path


def test_prepare_counts_the_classes(compared):
    table = compared.folder / "images" / "images.csv"
    done = compared.module(
        "prepare", "--dataset", "table", "--table", str(table), "--image_size", "16",
        "--input", "roi", "--workers", "1", "--classes", ",".join(CLASSES),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| test | " in done.stderr
    assert "| subset | patients | cyst | fibroadenoma | carcinoma |" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "table"], "add table=images.csv"),
        (["--table", "images.csv"], "add dataset=table"),
        (["--dataset", "table", "--table", "none.csv"], "is not a file"),
        (["--dataset", "table", "--table", "x.csv", "--classes", "a,a"], "different classes"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(workspace, arguments, told):
    done = workspace.module("train", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_registered_model_takes_the_files_themselves(compared):
    """Of whole images and three classes, with the answers of the training run."""
    mlflow.set_tracking_uri(compared.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/sgc-table@champion")
    (run,) = (r for r in runs(compared, "train") if r.data.tags["model"] == "sgc")
    predictions = artifact(compared, run, "predictions.csv")
    predictions = predictions[predictions["subset"] == "test"].set_index("image_id")
    names = {
        hashed("img", "path", path.name, salt="table"): path
        for path in (compared.folder / "images").glob("image_*")
    }
    chosen = predictions.index[:6]
    files = pd.DataFrame({"image": [names[name].read_bytes() for name in chosen]})
    answer = model.predict(files)
    for column in (f"probability_{name}" for name in CLASSES):
        expected = predictions.loc[chosen, column].to_numpy()
        assert answer[column].to_numpy() == pytest.approx(expected, abs=1e-6)
    shares = {"prevalence": [0.98, 0.01, 0.01], "map": True}
    rare = model.predict(files, params=shares)
    assert (rare["probability_cyst"] > answer["probability_cyst"]).all()
    assert rare["map"].str.startswith("iVBOR").all()
    assert rare["log_odds_carcinoma"].notna().all()


def test_an_evaluation_on_the_own_table_repeats_training(compared):
    table = compared.folder / "images" / "images.csv"
    done = compared.module(
        "evaluate", "--model_uri", "models:/sgc-table@champion", "--dataset", "table",
        "--table", str(table), "--bootstrap", "100", "--workers", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (r for r in runs(compared, "train") if r.data.tags["model"] == "sgc")
    (again,) = runs(compared, "evaluate")
    for name in ("test_macro_auc", "test_macro_auc_low", "test_brier"):
        assert again.data.metrics[name] == run.data.metrics[name]
