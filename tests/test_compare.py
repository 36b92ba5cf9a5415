"""Several models on the same patients, and their comparison, through real runs in a real store."""

import io
import os

import mlflow
import pandas as pd
import pytest

from sgc_experiments import past_runs
from sgc_experiments.command_line import parse
from sgc_experiments.config import BaselineConfig, TrainConfig
from sgc_experiments.errors import UserError
from sgc_experiments.experiments import baseline, compare, cross_validation
from tests.conftest import SMALL

MODELS = ("test_resnet", "majority")
# The phantom and its preparation are those of the whole suite; training is as short as can be.
TINY = SMALL | {"budget": "steps:3", "validate_every": "3", "bootstrap": "100"}


def _arguments(**changes):
    return [part for k, v in (TINY | changes).items() for part in (f"--{k}", v)]


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_workspace):
    """A workspace in which `mlflow run . -e baseline` has compared two models."""
    workspace = make_workspace(tmp_path_factory.mktemp("study"))
    done = workspace.project("baseline", models=",".join(MODELS), **TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace


@pytest.fixture
def store(study, monkeypatch):
    """The study's store, as that of this process."""
    return _enter(study, monkeypatch)


@pytest.fixture
def new_store(workspace, monkeypatch):
    """An empty store, as that of this process."""
    return _enter(workspace, monkeypatch)


def _enter(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "SGC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SGC_CACHE_DIR", str(workspace.cache))
    mlflow.set_tracking_uri(workspace.tracking_uri)
    return workspace


def _tagged(workspace, **tags):
    return [r for r in workspace.runs() if tags.items() <= r.data.tags.items()]


def _artifact(run, name):
    return mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{name}")


def _csv(run, name):
    return pd.read_csv(io.StringIO(_artifact(run, f"{name}.csv")))


def test_every_model_is_a_nested_run_and_registered(store):
    (parent,) = _tagged(store, entry_point="baseline")
    assert parent.info.status == "FINISHED"
    for model in MODELS:
        (run,) = _tagged(store, entry_point="train", model=model)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        (version,) = store.client.search_model_versions(f"name='{model}-phantom'")
        assert version.tags["split_digest"] == run.data.tags["split_digest"]


def test_every_model_has_the_same_patients_in_every_subset(store):
    runs = _tagged(store, entry_point="train")
    assert len({run.data.tags["split_digest"] for run in runs}) == 1
    assert len({_artifact(run, "split.csv") for run in runs}) == 1
    columns = ["image_id", "patient", "label", "subset"]
    first, second = (_csv(run, "predictions")[columns] for run in runs)
    pd.testing.assert_frame_equal(first, second)


def test_the_budget_is_logged_and_the_same(store):
    timm_run = _tagged(store, model="test_resnet")[0]
    assert timm_run.data.params["config.budget"] == "steps:3"
    assert timm_run.data.metrics["training_steps"] == 3
    assert timm_run.data.metrics["training_images"] == 96
    assert timm_run.data.metrics["inference_seconds_per_image"] > 0
    # One for each symmetry of the square, which training uses on crops.
    assert timm_run.data.metrics["network_evaluations_per_image"] == 8


def test_the_parent_compares_the_models(store):
    (parent,) = _tagged(store, entry_point="baseline")
    differences = _csv(parent, "differences")
    assert set(differences["level"]) == {"image", "breast", "exam"}
    assert set(differences["model"]) == {"majority"}
    assert set(differences["reference"]) == {"test_resnet"}
    results = _csv(parent, "comparison").set_index(["model", "level", "metric"])["value"]
    for row in differences.itertuples():
        expected = results[row.model, row.level, row.metric]
        assert row.difference == pytest.approx(
            expected - results[row.reference, row.level, row.metric]
        )
    assert results["majority", "image", "auc"] == 0.5
    page = _artifact(parent, "comparison.html")
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page
    assert all(model in page for model in MODELS)


def test_the_same_command_fits_nothing_again(store):
    before = _tagged(store, entry_point="train")
    baseline.main(_arguments(models=",".join(MODELS)))
    assert len(_tagged(store, entry_point="train")) == len(before)
    newest, oldest = _tagged(store, entry_point="baseline")
    assert _artifact(newest, "differences.csv") == _artifact(oldest, "differences.csv")


def test_compare_takes_runs_of_one_split_and_gives_what_their_predictions_say(store):
    (digest,) = {run.data.tags["split_digest"] for run in _tagged(store, entry_point="train")}
    tags = {"entry_point": "train", "model": "resnet18", "split_digest": "f" * 64}
    with mlflow.start_run(tags=tags) as other:
        pass
    with pytest.raises(UserError, match="different patients") as caught:
        compare.main([])
    assert all(text in str(caught.value) for text in (digest[:12], "f" * 12, "resnet18"))
    assert _tagged(store, entry_point="compare")[0].info.status == "FAILED"

    compare.main(["--bootstrap", "100", "--reference", "test_resnet", "--split", digest[:12]])
    store.client.delete_run(other.info.run_id)
    compared = _tagged(store, entry_point="compare")[0]
    parent = _tagged(store, entry_point="baseline")[-1]
    assert compared.data.tags["split_digest"] == digest
    assert _artifact(compared, "differences.csv") == _artifact(parent, "differences.csv")
    assert {f.path for f in store.client.list_artifacts(compared.info.run_id, "figures")} >= {
        "figures/comparison_roc.png",
        "figures/comparison_reliability.png",
        "figures/comparison_differences.png",
        "figures/comparison_auc_against_inference_seconds_per_image.png",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--experiment", "nowhere"], "no experiment named 'nowhere'"),
        (["--runs", "majority-phantom-roi32-seed1"], "did you mean majority-phantom-roi32-seed0"),
        (["--split", "zzz"], "No finished run used split=zzz"),
        (["--runs", "test_resnet-phantom-roi32-seed0"], "at least two finished runs"),
        (["--runs", "test_resnet-phantom-roi32-seed0,", "--seed", "x"], "seed=x"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(store, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        compare.main(arguments)
    assert "\n" not in str(caught.value)


def test_a_baseline_that_saw_a_test_patient_is_caught(store):
    run = _tagged(store, model="test_resnet")[0]
    honest = _artifact(run, "split.csv")
    manifest = _csv(run, "split")
    seen = manifest.index[manifest["subset"] == "test"][0]
    manifest.loc[seen, "subset"] = "train"
    try:
        store.client.log_text(run.info.run_id, manifest.to_csv(index=False), "split.csv")
        with pytest.raises(UserError, match=r"split of test_resnet has 1 patient\(s\) in two"):
            compare.main([])
    finally:
        store.client.log_text(run.info.run_id, honest, "split.csv")


def test_cross_validations_pool_the_same_folds_and_go_on_where_they_were_broken_off(
    new_store, monkeypatch
):
    models = ("majority", "logistic_regression")
    fit, fitted = cross_validation.fit, []

    def fit_until_interrupted(run, config, data, classifier):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(run.run_id)
        fit(run, config, data, classifier)

    arguments = _arguments(models=",".join(models), folds="2")
    monkeypatch.setattr(cross_validation, "fit", fit_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        baseline.main(arguments)
    statuses = [run.info.status for run in new_store.runs()]
    assert sorted(statuses) == ["FINISHED", "KILLED", "KILLED", "KILLED"]
    monkeypatch.setattr(cross_validation, "fit", fit)
    baseline.main(arguments)

    parent = _tagged(new_store, entry_point="baseline")[0]
    runs = [_tagged(new_store, entry_point="train", model=model)[0] for model in models]
    assert all(run.info.status == "FINISHED" for run in (parent, *runs))
    folds = _tagged(new_store, entry_point="fold", model="majority")
    finished = {run.data.tags["fold"]: run for run in folds if run.info.status == "FINISHED"}
    assert sorted(finished) == ["1", "2"]
    assert finished["1"].info.run_id == fitted[0]

    assert len({run.data.tags["split_digest"] for run in runs}) == 1
    assert _artifact(runs[0], "split.csv") == _artifact(runs[1], "split.csv")
    predictions = _csv(runs[0], "predictions").query("subset == 'test'")
    tested = predictions.groupby("patient")["fold"].nunique()
    assert set(tested.index) == set(_csv(runs[0], "split")["patient"])
    assert (tested == 1).all()
    report = _csv(runs[0], "test_metrics").query("group == 'all' and metric == 'auc'")
    assert set(report["level"]) == {"image", "breast", "exam"}
    assert set(_csv(parent, "differences")["model"]) == {"logistic_regression"}


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        (TrainConfig, ["--folds", "1"], "folds must be 0"),
        (TrainConfig, ["--repeats", "3"], "add folds=5"),
        (TrainConfig, ["--class_weights", "true"], "add balanced=false"),
        (TrainConfig, ["--mixup", "-1"], "mixup=-1"),
        (BaselineConfig, ["--models", "resnet18,resnet18"], "names a model twice"),
        (BaselineConfig, ["--models", ""], "models="),
        (BaselineConfig, ["--model", "resnet18"], "did you mean models?"),
    ],
)
def test_parameters_that_contradict_each_other_are_named(config, arguments, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as caught:
        parse(config, arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": "resnet18,resnet999"}, "no model named 'resnet999'"),
        ({"models": "majority", "folds": "30"}, "30 folds need"),
        ({"models": "inception_v3"}, "inception_v3 cannot take images of 32 pixels"),
        (
            {"models": "resnet18", "weights": "/nowhere.pth"},
            "is not a file; give the path of a file of weights",
        ),
    ],
)
def test_a_baseline_that_cannot_be_fitted_ends_failed_with_the_reason(new_store, changes, words):
    with pytest.raises(UserError, match=words):
        baseline.main(_arguments(**changes))
    parent = _tagged(new_store, entry_point="baseline")[0]
    assert parent.info.status == "FAILED"
    assert words in parent.data.tags["failure_reason"]


def test_tables_read_back_keep_text_as_text(new_store):
    table = pd.DataFrame(
        {
            "image_id": ["001", "1e5"],
            "density": ["", "3"],
            "fold": ["1.10", "1.1"],
            "x": [0.1, None],
        }
    )
    with mlflow.start_run() as run:
        mlflow.log_text(table.to_csv(index=False), "table.csv")
    with mlflow.start_run():
        (past,) = (p for p in past_runs.finished_runs() if p.run_id == run.info.run_id)
    pd.testing.assert_frame_equal(past.table("table"), table)
    with pytest.raises(UserError, match=r"has no nothing\.csv"):
        past.table("nothing")
