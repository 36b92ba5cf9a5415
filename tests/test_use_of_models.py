"""Entry points `evaluate` and `predict`, on the model that the main job registered."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from sgc_experiments.__main__ import main
from sgc_experiments.command_line import parse
from sgc_experiments.config import EvaluateConfig, TrainConfig, resolve_defaults
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.experiments.datasets import split_images
from sgc_experiments.experiments.evaluate import resolve
from sgc_experiments.experiments.fitted import load_fitted
from sgc_experiments.experiments.fitting import DATA_PARAMETERS
from sgc_experiments.experiments.prediction_journal import PredictionJournal
from tests.conftest import SMALL
from tests.data.test_splits import image_table

MODEL = "models:/sgc-phantom@champion"


@pytest.fixture(scope="module")
def trained(store):
    """The run that fitted the champion."""
    version = store.client.get_model_version_by_alias("sgc-phantom", "champion")
    return store.client.get_run(version.run_id)


@pytest.fixture
def command(store, monkeypatch):
    """An entry point, run in this process: a start costs more than the work."""
    monkeypatch.setenv("SGC_CACHE_DIR", str(store.cache))
    monkeypatch.chdir(store.folder)
    mlflow.set_tracking_uri(store.tracking_uri)

    def run(name: str, **parameters: object) -> int:
        return main([name, *(str(p) for k, v in parameters.items() for p in (f"--{k}", v))])

    return run


def runs(workspace, entry_point):
    found = workspace.runs()
    return [run for run in found if run.data.tags.get("entry_point") == entry_point]


def artifact(workspace, run, name):
    return pd.read_csv(
        mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path=name, tracking_uri=workspace.tracking_uri
        )
    )


def test_an_evaluation_on_the_own_test_subset_repeats_training(store, trained):
    done = store.project("evaluate", model_uri=MODEL, bootstrap="200", workers="1")
    assert done.returncode == 0, done.stderr
    run = runs(store, "evaluate")[0]
    names = [name for name in trained.data.metrics if name.startswith("test_")]
    assert len(names) > 30
    for name in names:
        assert run.data.metrics[name] == trained.data.metrics[name], name
    assert run.data.tags["n_patients_left_out"] == "0"
    assert run.data.tags["fitted_by"] == trained.info.run_id
    figures = {f.path for f in store.client.list_artifacts(run.info.run_id, "figures")}
    assert {"figures/roc.png", "figures/confusion.png"} <= figures


def test_patients_whom_the_model_has_seen_are_left_out(store, trained, command):
    assert command("evaluate", model_uri=MODEL, subset="all", bootstrap=100, workers=1) == 0
    run = runs(store, "evaluate")[0]
    split = artifact(store, trained, "split.csv")
    seen = set(split.loc[split["subset"] != "test", "patient"])
    assert run.data.tags["n_patients_left_out"] == str(len(seen))
    predicted = artifact(store, run, "predictions.csv")
    assert set(predicted["patient"]) == set(split["patient"]) - seen


def test_an_evaluation_repeats_the_split_of_training_with_all_that_decides_on_it():
    given = {"n_patients": 14, "subset_seed": 3, "training_prevalence": 0.5, "split_seed": 2}
    arguments = [str(part) for k, v in given.items() for part in (f"--{k}", v)]
    fitted = resolve_defaults(parse(TrainConfig, arguments), gpu=False)
    model = SimpleNamespace(
        settings=PreprocessSettings("roi", 32),
        facts={"dataset": "phantom", "data": fitted.model_dump(include=DATA_PARAMETERS)},
    )
    evaluated = resolve(parse(EvaluateConfig, ["--model_uri", MODEL]), model)
    dataset = SimpleNamespace(table=image_table(40, 20))
    assert split_images(evaluated, dataset).digest == split_images(fitted, dataset).digest


def test_an_evaluation_may_take_the_flows_likelihood(store, trained, command):
    """It is calibrated, and its thresholds are chosen, on the validation patients of training."""
    assert command("evaluate", model_uri=MODEL, likelihood="ode", bootstrap=100, workers=1) == 0
    run = runs(store, "evaluate")[0]
    names = ["image_id", "label"]
    by_flow, by_bound = (artifact(store, r, "predictions.csv") for r in (run, trained))
    by_bound = by_bound[by_bound["subset"] == "test"]
    assert by_flow[names].to_numpy().tolist() == by_bound[names].to_numpy().tolist()
    assert (by_flow["log_odds"].to_numpy() != by_bound["log_odds"].to_numpy()).all()
    # Not calibrated, evidence of a flow over 1,024 pixels is worth hundreds of nats.
    assert by_flow["log_odds"].abs().max() < 30
    assert by_flow["standard_error"].min() > 0


def test_probabilities_are_for_the_prevalence_that_is_wanted(store, trained, command):
    assert command("evaluate", model_uri=MODEL, prevalence=0.05, bootstrap=100, workers=1) == 0
    run = runs(store, "evaluate")[0]
    assert run.data.metrics["prevalence_malignant"] == pytest.approx(0.05)
    moved, before = (artifact(store, r, "predictions.csv") for r in (run, trained))
    before = before[before["subset"] == "test"]
    change = moved["log_odds"].to_numpy() - before["log_odds"].to_numpy()
    assert np.ptp(change) < 1e-6
    assert change[0] < -1
    assert run.data.metrics["test_auc"] == pytest.approx(trained.data.metrics["test_auc"])
    assert run.data.metrics["test_brier"] != trained.data.metrics["test_brier"]

    assert (
        command("evaluate", model_uri=MODEL, prevalence="estimate", bootstrap=100, workers=1) == 0
    )
    found = runs(store, "evaluate")[0].data.metrics
    assert found["prevalence_benign"] + found["prevalence_malignant"] == pytest.approx(1)
    low, high = (found[f"prevalence_malignant_{end}"] for end in ("low", "high"))
    assert 0 <= low <= found["prevalence_malignant"] <= high <= 1


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"model_uri": MODEL, "prevalence": 1.5}, "prevalence=1.5"),
        ({"model_uri": MODEL, "subset": "train"}, "no patient whom the model has not seen"),
        ({"model_uri": MODEL, "image_size": 48}, "contradicts the model"),
        ({"model_uri": "models:/nothing@champion"}, "NAME is one of sgc-phantom"),
        ({"model_uri": "http://127.0.0.1:9/model"}, "NAME is one of sgc-phantom"),
        ({}, "model_uri is missing"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_a_sentence(command, capsys, parameters, told):
    assert command("evaluate", **parameters) == 2
    assert told in capsys.readouterr().err


def test_foreign_images_are_flagged_among_phantoms(store, phantom, command):
    """Noise and handwritten digits, scaled up, are told; of inverted crops, a part."""
    classifier = load_fitted(MODEL, "cpu").classifier
    split = artifact(store, runs(store, "train")[0], "split.csv").set_index("patient")
    subset = phantom.table["patient"].map(split["subset"].groupby(level=0).first())
    own = np.asarray(phantom.images[(subset == "test").to_numpy()])
    noise = np.random.default_rng(0).normal(size=own.shape) * 6500  # a tenth of the range
    digits = np.kron(load_digits().images[:60], np.ones((4, 4))) * (65535 / 16)
    noisy = np.clip(own + noise, 0, 65535)
    shares = {
        name: classifier.predict_log_odds(images.astype(np.uint16)).out_of_distribution.mean()
        for name, images in {
            "own": own, "noisy": noisy, "digits": digits, "inverted": 65535 - own
        }.items()
    }  # fmt: skip
    assert shares["own"] <= 0.1, shares
    assert min(shares["noisy"], shares["digits"]) >= 0.8, shares
    assert shares["inverted"] >= 0.3, shares


@pytest.fixture
def folder(tmp_path, phantom):
    """Six of the phantom's files under telling names, and their boxes."""
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    lines = ["path,x0,y0,x1,y1"]
    for number, row in enumerate(phantom.table.head(6).itertuples()):
        name = f"deep/Jane_Doe_{number}.dcm"
        shutil.copy(row.path, images / name)
        lines.append(f"{name},{','.join(map(str, row.lesions[0]))}")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (images / "notes.txt").write_text("no image")
    lines.append("broken.png,0,0,1,1")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return tmp_path


def predict(command, folder, **changes):
    parameters = {
        "model_uri": MODEL, "images": folder / "images", "out": folder / "out.csv",
        "boxes": folder / "boxes.csv", "workers": 1,
    } | changes  # fmt: skip
    return command("predict", **parameters)


def test_a_folder_is_scored_as_training_scores_it(store, folder, phantom, command):
    assert predict(command, folder) == 0
    scored = pd.read_csv(folder / "out.csv")
    assert list(scored["path"]) == [f"deep/Jane_Doe_{n}.dcm" for n in range(6)]
    model = mlflow.pyfunc.load_model(MODEL)
    expected = model.predict((phantom.images[:6] / 65535).astype("float32"))
    for name in ("probability_malignant", "log_odds"):
        assert scored[name].to_numpy() == pytest.approx(expected[name].to_numpy(), abs=1e-6)
    quarantine = pd.read_csv(folder / "out_quarantine.csv")
    assert quarantine.to_dict("records") == [
        {"path": "broken.png", "reason": "the pixel data cannot be decoded"}
    ]
    run = runs(store, "predict")[0]
    assert (run.data.metrics["images"], run.data.metrics["quarantined"]) == (6, 1)
    for path in (store.folder / "mlruns").rglob("*"):
        assert not path.is_file() or b"Jane_Doe" not in path.read_bytes(), path
    assert not any("Jane_Doe" in str(run.data) for run in runs(store, "predict"))


def test_a_folders_probabilities_take_another_prevalence(store, folder, command):
    tables = {}
    for prevalence in ("training", "0.05", "estimate"):
        assert predict(command, folder, prevalence=prevalence) == 0
        tables[prevalence] = pd.read_csv(folder / "out.csv")
    metrics = runs(store, "predict")[0].data.metrics
    assert 0 < metrics["prevalence_malignant"] < 1
    rare = tables["0.05"]
    assert (rare["probability_malignant"] < tables["training"]["probability_malignant"]).all()
    sums = rare["probability_benign"] + rare["probability_malignant"]
    assert sums.to_numpy() == pytest.approx(1)
    assert (rare["abstain"] == tables["training"]["abstain"]).all()


def test_a_broken_off_prediction_goes_on(store, folder, command, caplog):
    assert predict(command, folder) == 0
    complete = (folder / "out.csv").read_bytes()
    # What a kill leaves behind: no table, and a journal whose last line is unfinished.
    rows = pd.read_csv(folder / "out.csv").set_index("path")
    version = store.client.get_model_version_by_alias("sgc-phantom", "champion")
    digest = store.client.get_run(version.run_id).data.tags["data_digest"]
    settings = PreprocessSettings("roi", 32)
    boxes = pd.read_csv(folder / "boxes.csv").set_index("path")
    identity = [version.run_id, settings.as_dict(), 0, digest]
    (folder / "out.csv").unlink()
    with PredictionJournal(folder / "out.csv", identity) as journal:
        for name in list(rows.index)[:3]:
            marked = rows.loc[name].to_dict() | {"log_odds": 99.0}
            journal.add(name, folder / "images" / name, tuple(boxes.loc[name]), marked)
    with (folder / "out.csv.partial").open("a") as file:
        file.write('{"identity": "')
    with caplog.at_level("INFO"):
        assert predict(command, folder) == 0
    assert "3 of 7 images are done" in caplog.text
    scored = pd.read_csv(folder / "out.csv")
    assert list(scored["log_odds"][:3]) == [99.0] * 3  # taken over, not computed again
    assert (scored["log_odds"][3:].to_numpy() == rows["log_odds"][3:].to_numpy()).all()
    assert not (folder / "out.csv.partial").exists()
    assert predict(command, folder) == 0
    assert (folder / "out.csv").read_bytes() == complete


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"boxes": ""}, "give boxes=FILE.csv"),
        ({"images": "nowhere"}, "is not a folder"),
        ({"out": "nowhere/out.csv"}, "there is no folder"),
        ({"out": "out.txt"}, "out must be the name of a CSV file"),
        ({"boxes": "nowhere.csv"}, "is no file"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_a_sentence(command, capsys, folder, changes, told):
    assert predict(command, folder, **changes) == 2
    assert told in capsys.readouterr().err


def test_the_phantom_of_these_tests_is_the_one_that_was_trained_on(phantom, trained):
    assert phantom.digest == trained.data.tags["data_digest"]
    assert SMALL["phantom_patients"] == "40"
