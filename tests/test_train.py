"""The main job, end to end, as its users start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, resolve_defaults
from sgc_experiments.errors import without_paths
from sgc_experiments.experiments.datasets import load_images
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def run(finished):
    return finished.runs()[0]


@pytest.fixture(scope="module")
def artifacts(finished, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    return mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, dst_path=str(folder), tracking_uri=finished.tracking_uri
    )


def _read(artifacts, name):
    return pd.read_csv(f"{artifacts}/{name}")


def test_the_run_is_finished_and_named(run):
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "sgc-phantom-roi32-seed0 phantom_patients=40 budget=steps:60"


def test_the_resolved_configuration_is_logged_under_its_own_prefix(run, artifacts):
    assert run.data.params["config.image_size"] == "32"
    assert run.data.params["config.input"] == "roi"
    assert "config.cache_dir" not in run.data.params
    again = parse(TrainConfig, ["--config", f"{artifacts}/config.yaml"])
    assert str(again.budget) == run.data.params["config.budget"]
    assert again.phantom_patients == int(run.data.params["config.phantom_patients"])


def test_tags_say_what_the_run_rests_on(run):
    tags = run.data.tags
    assert tags["entry_point"] == "train"
    assert len(tags["split_digest"]) == len(tags["data_digest"]) == 64
    assert int(tags["n_train_patients"]) > 0
    assert tags["commit"]


def test_the_datasets_are_inputs_with_digests(run):
    inputs = run.inputs.dataset_inputs
    assert sorted(i.dataset.name for i in inputs) == [
        "phantom-test",
        "phantom-train",
        "phantom-validation",
    ]
    assert {i.dataset.digest for i in inputs} == {run.data.tags["split_digest"][:36]}


def test_metrics_have_intervals_and_stand_beside_the_majority_class(run, artifacts):
    for name in ("auc", "average_precision", "balanced_accuracy", "brier", "ece"):
        value, low, high = (run.data.metrics[f"test_{name}{end}"] for end in ("", "_low", "_high"))
        assert low <= value <= high
    for rate in (80, 90, 95):
        assert f"test_sensitivity_at_{rate}_specificity" in run.data.metrics
    table = _read(artifacts, "test_metrics.csv")
    headline = table[(table["level"] == "image") & (table["group"] == "all")]
    majority = headline.set_index("metric")["majority_class"]
    assert majority["auc"] == 0.5
    assert majority["balanced_accuracy"] == 0.5


def test_metrics_are_live_while_it_trains(finished, run):
    history = finished.client.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in history] == list(range(10, 61, 10))


def test_system_metrics_are_there(run):
    assert any(name.startswith("system/") for name in run.data.metrics)


@pytest.mark.parametrize(
    "name",
    [
        "roc",
        "precision_recall",
        "reliability",
        "confusion",
        "samples",
        "explanations",
        "training_curves",
    ],
)
def test_figures_are_pictures(artifacts, name):
    with open(f"{artifacts}/figures/{name}.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_no_patient_straddles_the_split_and_the_predictions_follow_it(artifacts):
    split, predictions = _read(artifacts, "split.csv"), _read(artifacts, "predictions.csv")
    assert (split.groupby("patient")["subset"].nunique() == 1).all()
    for subset in ("validation", "test"):
        expected = set(split.loc[split["subset"] == subset, "image_id"])
        assert set(predictions.loc[predictions["subset"] == subset, "image_id"]) == expected
    assert (split.groupby("subset")["label"].nunique() == 2).all()


def test_the_environment_is_recorded(artifacts):
    with open(f"{artifacts}/environment.json", encoding="utf-8") as file:
        environment = json.load(file)
    assert environment["packages"]["mlflow"] == mlflow.__version__


def test_same_seed_same_numbers_to_the_last_digit(finished):
    first, second = finished.runs()[:2]
    compared = [
        name
        for name in first.data.metrics
        if not name.startswith("system/") and "seconds" not in name
    ]
    assert len(compared) > 50
    assert {n: first.data.metrics[n] for n in compared} == {
        n: second.data.metrics[n] for n in compared
    }


def test_the_first_of_equals_is_champion(finished):
    client = finished.client
    versions = client.search_model_versions("name='sgc-phantom'")
    assert [str(v.version) for v in versions] == ["2", "1"]
    champion = client.get_model_version_by_alias("sgc-phantom", "champion")
    assert str(champion.version) == "1"
    assert float(versions[0].tags["val_auc"]) == float(versions[1].tags["val_auc"])
    described = client.get_registered_model("sgc-phantom").description
    assert "Now version 1" in described
    assert champion.description in described


def test_the_registered_model_answers_in_a_fresh_process_and_holds_no_pickle_nor_image(
    finished, artifacts, tmp_path
):
    arguments = ["--config", f"{artifacts}/config.yaml", "--cache_dir", str(finished.cache)]
    dataset = load_images(resolve_defaults(parse(TrainConfig, arguments), gpu=False))
    images = dict(zip(dataset.table["image_id"], dataset.images, strict=True))
    predictions = _read(artifacts, "predictions.csv")
    some = predictions[predictions["subset"] == "test"].head(2)
    np.save(tmp_path / "images.npy", np.stack([images[image_id] for image_id in some["image_id"]]))
    code = """
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/sgc-phantom@champion")
answer = model.predict(np.load("images.npy").astype(np.float32) / 65535)
np.save("example.npy", model.input_example)
print(answer.to_json(orient="records"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in finished.environment().items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for answer in answers:
        assert answer["probability_benign"] + answer["probability_malignant"] == pytest.approx(1)
    expected = some["probability"].tolist()
    assert [a["probability_malignant"] for a in answers] == pytest.approx(expected, abs=1e-6)
    example = np.rint(np.load(tmp_path / "example.npy") * 65535).astype(np.uint16)
    assert example.shape == (2, 32, 32)
    assert not any((one == image).all() for one in example for image in images.values())
    version = finished.client.get_model_version_by_alias("sgc-phantom", "champion")
    mlflow.set_tracking_uri(finished.tracking_uri)
    folder = mlflow.artifacts.download_artifacts(
        artifact_uri=version.source, dst_path=str(tmp_path), tracking_uri=finished.tracking_uri
    )
    names = [path.name for path in Path(folder).rglob("*")]
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    assert any(n.endswith(".safetensors") for n in names)


def test_the_model_refuses_what_is_no_stack_of_prepared_images(finished):
    mlflow.set_tracking_uri(finished.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/sgc-phantom@champion")
    with pytest.raises(Exception, match=r"shape \(N, 32, 32\)"):
        model.predict(np.zeros((2, 16, 16), np.float32))
    with pytest.raises(Exception, match="values from 0"):
        model.predict(np.full((1, 32, 32), 7, np.float32))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"datset": "x"}, ["'datset'", "did you mean dataset?"]),
        ({"dataset": "inbreast"}, ["INbreast", "dataset=phantom"]),
    ],
)
def test_bad_input_ends_as_a_failed_run_with_the_reason(workspace, parameters, words):
    done = workspace.project("train", **parameters)
    assert done.returncode != 0
    (run,) = workspace.runs()
    assert run.info.status == "FAILED"
    reason = run.data.tags["failure_reason"]
    assert all(word in reason for word in words), reason
    assert reason in without_paths(done.stderr)
    assert "Traceback" not in done.stderr


def test_a_project_run_takes_what_a_file_says_over_the_defaults(workspace):
    file = workspace.folder / "best_config.yaml"
    file.write_text("dataset: inbreast\nmodel: resnet18\nseed: 4\n", encoding="utf-8")
    done = workspace.project("train", config=str(file))
    (run,) = workspace.runs()
    assert "INbreast" in run.data.tags["failure_reason"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data_dir", "/nonexistent"], ["dataset=phantom"]),
        (["--phantom_patients", "20", "--n_patients", "4000"], ["4000"]),
        (["--model", "resnet999"], ["resnet999"]),
    ],
)
def test_bad_data_ends_as_a_failed_run_without_a_stack_trace(workspace, arguments, words):
    dataset = "inbreast" if "--data_dir" in arguments else "phantom"
    small = [part for k, v in SMALL.items() for part in (f"--{k}", v)]
    done = workspace.module("train", *small, "--dataset", dataset, *arguments)
    assert done.returncode == 2
    (run,) = workspace.runs()
    assert run.info.status == "FAILED"
    assert all(word in run.data.tags["failure_reason"] for word in words)
    assert "Traceback" not in done.stderr
