"""What of the tracking holds between runs."""

import multiprocessing
from functools import partial

import mlflow
import pandas as pd
import pytest
import requests
from mlflow.exceptions import RestException

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, resolve_defaults
from sgc_experiments.delivery import server_trouble
from sgc_experiments.errors import Outage, UserError
from sgc_experiments.resumption import run_folder
from sgc_experiments.tracked_run import added
from sgc_experiments.tracking import Store, TrackedRun, start_run
from tests.conftest import HURRIED

_PROCESSES = 3
_TIMES = 30


def _add(run_id, store, barrier):
    store.enter()
    table = pd.DataFrame({"patient": ["a"], "label": [1]})
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_id=run_id):
        run = TrackedRun(run_id, store.experiment_id)
        for number in range(_TIMES):
            barrier.wait(60)
            run.log_input(table, name=f"d{number}", digest="0" * 40, context="train")
            barrier.wait(60)
            added(partial(client.set_registered_model_alias, "model", f"a{number}", "1"))
            barrier.wait(60)
            added(partial(client.set_experiment_tag, store.experiment_id, f"t{number}", "x"))


def test_runs_that_add_one_thing_at_one_moment_all_succeed(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("race", artifact_location=f"{tmp_path}/artifacts")
    client.create_registered_model("model")
    client.create_model_version("model", str(tmp_path))
    runs = [client.create_run(experiment).info.run_id for _ in range(_PROCESSES)]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(_PROCESSES) as pool:
        barrier = manager.Barrier(_PROCESSES)
        pool.map(partial(_add, store=Store(uri, uri, experiment), barrier=barrier), runs)
    for run in runs:
        assert len(client.get_run(run).inputs.dataset_inputs) == _TIMES
    assert len(client.get_registered_model("model").aliases) == _TIMES
    assert len(client.get_experiment(experiment).tags) >= _TIMES


def test_the_champion_is_the_best_under_its_split_and_never_of_fewer_patients(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("fits", artifact_location=f"{tmp_path}/artifacts")
    champions = []
    for split, patients, auc in (
        ("trial", 20, 1.0),
        ("whole", 200, 0.8),
        ("trial", 20, 1.0),
        ("whole", 200, 0.9),
        ("whole", 200, 0.85),
        ("other", 200, 0.7),
        ("whole", 200, 0.88),  # not the best under its split
    ):
        run = TrackedRun(client.create_run(experiment).info.run_id, experiment)
        tags = {"split_digest": split, "n_train_patients": patients, "val_auc": auc}
        run.register(f"file://{tmp_path}", "sgc-phantom", tags=tags, description="")
        champion = client.get_model_version_by_alias("sgc-phantom", "champion")
        champions.append(int(champion.version))
    assert champions == [1, 2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize(
    ("error", "kept"), [(UserError, False), (Outage, True), (KeyboardInterrupt, True)]
)
def test_only_a_run_that_can_be_gone_on_with_keeps_its_folder(
    workspace, tmp_path, monkeypatch, error, kept
):
    for variable in HURRIED:
        monkeypatch.setenv(variable, "5")
    mlflow.set_tracking_uri(workspace.tracking_uri)
    arguments = ["--cache_dir", str(tmp_path / "cache")]
    config = resolve_defaults(parse(TrainConfig, arguments), gpu=False)

    def stop():
        with start_run("run", {}, config=config, system_metrics=False) as run:
            (run.folder / "checkpoint").touch()
            raise error("because")

    with pytest.raises(error):
        stop()
    left = [path.name for path in (tmp_path / "cache").glob("runs/*/checkpoint")]
    assert left == (["checkpoint"] if kept else [])
    assert ("resume_key" in workspace.runs()[0].data.tags) is kept


def test_a_user_without_permission_is_told_whom_to_ask(tmp_path):
    """The text of the server's answer, which may hold names, is left out."""
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    forbidden = RestException({"error_code": "PERMISSION_DENIED", "message": "for Ms Example"})
    with pytest.raises(Outage, match="EDIT permission") as told, start_run("a", {}):
        raise forbidden
    assert "Example" not in str(told.value)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_artifact_is_told_like_a_refused_run(status):
    response = requests.Response()
    response.status_code = status
    told = server_trouble(requests.HTTPError(response=response))
    assert isinstance(told, Outage)
    assert ("EDIT permission" in str(told)) is (status == 403)
    assert server_trouble(requests.HTTPError(response=None)) is None


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
        with run_folder(tmp_path, config.model_dump(mode="json")) as folder:
            keys.append(folder.key)
    assert (keys[0] == keys[1]) is same
