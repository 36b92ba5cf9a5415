"""Images without labels: which ones are taken, which are refused, and what a run says of them."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from sgc_experiments.__main__ import main
from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, resolve_defaults
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.datasets import Data, load_data
from sgc_experiments.experiments.fitting import fingerprint
from sgc_experiments.experiments.unlabelled import find_unlabelled, join
from sgc_experiments.past_runs import read_run
from tests.conftest import SMALL

TINY = SMALL | {"image_size": "16", "budget": "steps:2", "validate_every": "2", "bootstrap": "100"}


def configured(cache, **changes):
    values = SMALL | {"cache_dir": str(cache)} | changes
    arguments = [part for k, v in values.items() for part in (f"--{k}", str(v))]
    return resolve_defaults(parse(TrainConfig, arguments), gpu=False)


@pytest.fixture(scope="module")
def whole(cache) -> Data:
    return load_data(configured(cache, input="whole"))


def files_of(cache, data, rows):
    return [data.dataset.table["path"].iloc[row] for row in rows]


def test_the_rest_are_patients_of_no_subset(cache):
    config = configured(cache, n_patients=14, unlabelled="rest")
    data = load_data(config)
    found = find_unlabelled(config, data)
    table = data.dataset.table.set_index("image_id")
    assert set(found.manifest["patient"]) == set(table["patient"]) - set(
        data.split.manifest["patient"]
    )
    assert len(found.images) == (~table["patient"].isin(data.split.manifest["patient"])).sum()
    rows = [data.dataset.table["image_id"].tolist().index(i) for i in found.manifest["image_id"]]
    assert np.array_equal(found.images, data.dataset.images[rows])


def test_who_is_hidden_is_no_patient_without_a_label(cache):
    """A trial of `tune`, from which test is hidden, learns from no test patient."""
    config = configured(cache, n_patients=14, unlabelled="rest")
    data = load_data(config)
    found, of_trial = (find_unlabelled(config, d) for d in (data, data.without_test()))
    assert of_trial.digest == found.digest
    manifest = data.split.manifest
    assert not set(of_trial.manifest["patient"]) & set(manifest["patient"])
    with pytest.raises(ValueError, match="test is hidden"):
        data.without_test().image_set("test")


def test_no_label_gets_into_training(cache):
    config = configured(cache, n_patients=14, unlabelled="rest")
    data = load_data(config)
    found = find_unlabelled(config, data)
    images, labels = join(data.image_set("train"), found)
    assert len(images) == len(labels) == len(data.rows("train")) + len(found.images)
    assert (labels[len(data.rows("train")) :] == -1).all()


def test_without_a_rest_it_is_said(cache):
    config = configured(cache, unlabelled="rest")
    with pytest.raises(UserError, match="n_patients"):
        find_unlabelled(config, load_data(config))


def test_a_folder_of_files_is_prepared_like_the_dataset(cache, whole, tmp_path):
    rows = whole.rows("train")[:3]
    (tmp_path / "more").mkdir()
    for place, file in enumerate(files_of(cache, whole, rows)):
        shutil.copy(file, tmp_path / "more" / f"{place}.dcm")
    (tmp_path / "broken.dcm").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    config = configured(cache, input="whole", unlabelled=tmp_path)
    found = find_unlabelled(config, whole)
    assert np.array_equal(
        np.sort(found.images.sum((1, 2), dtype=np.int64)),
        np.sort(whole.dataset.images[rows].sum((1, 2), dtype=np.int64)),
    )
    assert found.manifest["image_id"].str.match("img-[0-9a-f]{12}$").all()
    before = fingerprint(config, whole)
    (tmp_path / "more" / "2.dcm").unlink()
    assert fingerprint(config, whole) != before
    assert find_unlabelled(config, whole).digest != found.digest


@pytest.mark.parametrize("subset", ["validation", "test"])
def test_an_image_that_the_model_is_judged_on_is_refused(cache, whole, tmp_path, subset):
    (file,) = files_of(cache, whole, whole.rows(subset)[:1])
    shutil.copy(file, tmp_path / "renamed.dcm")
    config = configured(cache, input="whole", unlabelled=tmp_path)
    for data in (whole, whole.without_test()):
        with pytest.raises(UserError, match=f"1 {subset} image"):
            find_unlabelled(config, data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not a folder"),
        ("empty", "holds no image"),
        ("broken", "no usable image"),
        ("roi", "whole"),
    ],
)
def test_a_folder_of_no_use_is_named(cache, whole, tmp_path, content, words):
    folder = tmp_path / "images"
    if content:
        folder.mkdir()
    if content == "broken":
        (folder / "broken.dcm").write_bytes(b"no image")
    kind = "roi" if content == "roi" else "whole"
    config = configured(cache, input=kind, unlabelled=folder)
    data = load_data(config) if content == "roi" else whole
    with pytest.raises(UserError, match=words):
        find_unlabelled(config, data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_workspace):
    """A model with unlabelled images, and a second one that starts from its weights."""
    workspace = make_workspace(tmp_path_factory.mktemp("semi-supervised"))
    small = [part for k, v in TINY.items() for part in (f"--{k}", v)]
    for more in (
        ("--n_patients", "14", "--unlabelled", "rest"),
        ("--n_patients", "14", "--init_from", "models:/sgc-phantom@champion"),
        ("--init_from", "models:/sgc-inbreast@champion"),
        ("--init_from", "models:/sgc-phantom/2", "--split_seed", "1"),
        ("--init_from", "models:/sgc-phantom/2", "--folds", "2"),
    ):
        workspace.module("train", *small, *more)
    return workspace, workspace.runs()[::-1]


def test_a_run_records_its_unlabelled_images(runs, tmp_path):
    workspace, (first, second, *_) = runs
    tags = first.data.tags
    assert first.info.status == second.info.status == "FINISHED", tags.get("failure_reason")
    assert len(tags["unlabelled_digest"]) == 64
    assert int(tags["n_train_patients"]) < 14
    path = workspace.client.download_artifacts(first.info.run_id, "unlabelled.csv", str(tmp_path))
    table = pd.read_csv(path)
    assert len(table) == int(tags["n_unlabelled_images"])
    assert table["patient"].nunique() == int(tags["n_unlabelled_patients"])
    split = pd.read_csv(
        workspace.client.download_artifacts(first.info.run_id, "split.csv", str(tmp_path))
    )
    assert not set(table["patient"]) & set(split["patient"])
    assert "unlabelled_digest" not in second.data.tags


def test_a_run_records_the_weights_it_started_from(runs):
    _, (first, second, *_) = runs
    assert second.data.tags["init_from"] == "models:/sgc-phantom/1"
    assert len(second.data.tags["init_digest"]) == 64
    assert "init_from" not in first.data.tags


def test_weights_that_do_not_exist_fail_with_the_reason(runs):
    run = runs[1][2]
    assert run.info.status == "FAILED"
    assert run.data.tags["failure_reason"] == (
        "The registry has no model models:/sgc-inbreast@champion; it has: sgc-phantom."
    )


def table_of(run, workspace, name):
    mlflow.set_tracking_uri(workspace.tracking_uri)
    return read_run(run.info.run_id).table(name)


def seen_by_both(runs):
    """The patients that the first two models were trained on, and those they were validated on."""
    workspace, (first, second, *_) = runs
    both = pd.concat([table_of(run, workspace, "split") for run in (first, second)])
    without_label = set(table_of(first, workspace, "unlabelled")["patient"])
    return patients(both, "train") | without_label, patients(both, "validation")


def patients(manifest, subset):
    return set(manifest.loc[manifest["subset"] == subset, "patient"])


def test_weights_that_know_a_patient_to_be_judged_on_are_refused(runs):
    """Also if only the model before the one that is named has seen the patient."""
    workspace, (_, _, _, other_split, folds) = runs
    trained, validated = seen_by_both(runs)
    split = table_of(other_split, workspace, "split")
    known = trained & patients(split, "validation") | (trained | validated) & patients(
        split, "test"
    )
    for run, count in ((other_split, len(known)), (folds, len(trained | validated))):
        assert run.info.status == "FAILED"
        reason = run.data.tags["failure_reason"]
        assert reason.startswith(f"init_from=models:/sgc-phantom/2 has seen {count} patient(s)")
        assert "best_step" not in run.data.metrics
    assert len(runs[1]) == 5  # no fold was begun


def test_nobody_whom_a_model_has_seen_in_any_way_is_evaluated_on(runs, whole, monkeypatch):
    """Neither in its own training, nor by the weights before it, nor under another name."""
    workspace, (_, second, *_) = runs
    release = Path(whole.dataset.table["path"].iloc[0]).parents[2]
    monkeypatch.setenv("SGC_CACHE_DIR", str(workspace.cache))
    monkeypatch.chdir(workspace.folder)
    mlflow.set_tracking_uri(workspace.tracking_uri)
    arguments = {
        "model_uri": "models:/sgc-phantom/2", "dataset": "inbreast", "data_dir": release,
        "subset": "all", "bootstrap": "100", "workers": "1",
    }  # fmt: skip
    assert main(["evaluate", *(str(p) for k, v in arguments.items() for p in (f"--{k}", v))]) == 0
    evaluated = workspace.runs()[0]
    split, seen = table_of(second, workspace, "split"), set().union(*seen_by_both(runs))
    evaluated_on = set(table_of(evaluated, workspace, "predictions")["patient"])
    assert evaluated_on == patients(split, "test")
    assert evaluated.data.tags["n_patients_left_out"] == str(len(seen))
    assert "n_seen_images_of_unknown_patients" not in evaluated.data.tags
