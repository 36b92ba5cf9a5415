"""What of the tracking holds between runs."""

import multiprocessing
from functools import partial

import mlflow
import pandas as pd
import pytest

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, resolve_defaults
from sgc_experiments.resumption import claimed
from sgc_experiments.tracking import Store, TrackedRun

_PROCESSES = 3
_DATASETS = 40


def _log_datasets(run_id, store, barrier):
    store.enter()
    table = pd.DataFrame({"patient": ["a"], "label": [1]})
    with mlflow.start_run(run_id=run_id):
        run = TrackedRun(run_id, store.experiment_id)
        for number in range(_DATASETS):
            barrier.wait(60)
            run.log_input(table, name=f"d{number}", digest="0" * 40, context="train")


def test_runs_that_log_one_dataset_at_one_moment_all_succeed(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("race", artifact_location=f"{tmp_path}/artifacts")
    runs = [client.create_run(experiment).info.run_id for _ in range(_PROCESSES)]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(_PROCESSES) as pool:
        work = partial(
            _log_datasets,
            store=Store(uri, uri, experiment),
            barrier=manager.Barrier(_PROCESSES),
        )
        pool.map(work, runs)
    for run in runs:
        assert len(client.get_run(run).inputs.dataset_inputs) == _DATASETS


@pytest.mark.parametrize(("dataset", "same"), [("phantom", True), ("inbreast", False)])
def test_a_command_is_known_again_from_another_folder(tmp_path, monkeypatch, dataset, same):
    """`mlflow run` works in the folder of the project; `data/` there may hold other images."""
    keys = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.delenv("SGC_DATA_DIR", raising=False)
        config = parse(TrainConfig, ["--dataset", dataset, "--cache_dir", str(tmp_path)])
        config = resolve_defaults(config, gpu=False)
        with claimed(tmp_path, config.model_dump(mode="json")) as claim:
            keys.append(claim.key)
    assert (keys[0] == keys[1]) is same
