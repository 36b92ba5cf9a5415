"""A lab's services, as the documentation starts them: PostgreSQL, and MLflow on top of it."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests

from tests.conftest import ROOT, SMALL, Workspace
from tests.postgres import PostgresServer

TINY = SMALL | {
    "channels": "8,16", "budget": "steps:20", "validate_every": "10", "checkpoint_every": "10",
    "workers": "1",
}  # fmt: skip
TUNE = TINY | {
    "search": "channels=8-16|4-8,evaluations=8|16", "trial_budget": "steps:20", "trials": "5",
    "refit_seeds": "1",
}  # fmt: skip
GRID = TINY | {"models": "sgc,logistic_regression", "sizes": "0.5,all", "workers": "2"}
# Of the Ray cluster, and of who may use it.
SECRET = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}


@dataclass(frozen=True)
class Lab:
    """The services, and how a member of the lab is told of them."""

    workspace: Workspace
    uri: str
    studies: str

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def start(
        self, name: str, ray: str = "", told: dict[str, str] | None = None, **parameters: str
    ) -> subprocess.Popen:
        """An entry point as a task of a batch cluster runs it."""
        pairs = [part for key, value in parameters.items() for part in (f"--{key}", value)]
        told = {"SLURM_CPUS_PER_TASK": "1", "SLURM_ARRAY_TASK_ID": "1"} | (told or {})
        told |= {"RAY_ADDRESS": ray} | SECRET if ray else {}
        return subprocess.Popen(
            ["bash", str(ROOT / "lab" / "array.slurm"), name, *pairs],
            cwd=self.workspace.folder,
            env=self.workspace.environment() | told | {"MLFLOW_TRACKING_URI": self.uri},
            stdout=subprocess.DEVNULL,
            stderr=(self.workspace.folder / f"{name}.txt").open("a"),
        )

    def runs(self, **tags: str) -> list:
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        return self.client.search_runs(["0"], filter_string=wanted, max_results=1000)


@pytest.fixture(scope="module")
def lab(postgres_server, tmp_path_factory, make_workspace):
    with _serving(make_workspace(tmp_path_factory.mktemp("lab")), postgres_server) as lab:
        yield lab


@contextlib.contextmanager
def _serving(workspace: Workspace, postgres: PostgresServer, **more: str) -> Iterator[Lab]:
    """`lab/serve.sh`, told `more` in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "LAB_DATABASE": postgres.dsn(postgres.new_database()),
        "LAB_ARTIFACTS": str(workspace.folder / "served"),
        "LAB_PORT": str(port),
        "LAB_WORKERS": "1",
        "LAB_NAMES": f"127.0.0.1:{port}",
    }
    log = workspace.folder / "server.txt"
    server = subprocess.Popen(
        [str(ROOT / "lab" / "serve.sh")],
        cwd=workspace.folder,
        env=workspace.environment() | told | more,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait(uri, server, log)
        yield Lab(workspace, uri, postgres.dsn(postgres.new_database()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(uri: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{uri}/health", timeout=5).ok:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


def finish(lab: Lab, *processes: subprocess.Popen) -> None:
    for process in processes:
        assert process.wait(timeout=1800) == 0, "\n".join(
            path.read_text()[-2000:] for path in lab.workspace.folder.glob("*.txt")
        )


def test_a_member_trains_and_nobody_else_is_answered(lab):
    finish(lab, lab.start("train", **TINY, model="majority"))
    (run,) = lab.runs(entry_point="train")
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    (version,) = lab.client.search_model_versions("name = 'majority-phantom'")
    assert version.run_id == run.info.run_id
    assert (lab.workspace.folder / "served").is_dir()
    assert not list(lab.workspace.folder.glob("mlruns/*"))
    foreign = requests.get(f"{lab.uri}/api/2.0/mlflow/experiments/get?experiment_id=0",
                           headers={"Host": "elsewhere.example.org"}, timeout=10)  # fmt: skip
    assert foreign.status_code == 403


def test_with_basic_auth_a_member_needs_a_password(postgres_server, make_workspace, tmp_path):
    admin = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(8),
    }
    with _serving(make_workspace(tmp_path), postgres_server, LAB_AUTH="1", **admin) as lab:
        # Another has begun the experiment and the registered model already.
        for name in ("another", "me"):
            _add_user(lab.uri, name, admin["MLFLOW_AUTH_ADMIN_PASSWORD"])
            finish(lab, lab.start("train", told=_user(name), **TINY, model="majority"))
        said = lab.workspace.folder / "train.txt"
        for told in ({}, _user("me") | {"MLFLOW_TRACKING_PASSWORD": "wrong"}):
            said.write_text("")
            assert lab.start("train", told=told, **TINY, model="majority").wait(timeout=300) == 2
            assert len(said.read_text().strip().splitlines()) == 1
            assert "set MLFLOW_TRACKING_USERNAME" in said.read_text()


def _add_user(uri: str, name: str, admin_password: str) -> None:
    answer = requests.post(
        f"{uri}/api/2.0/mlflow/users/create",
        json={"username": name, "password": f"{name}, twelve letters"},
        auth=("admin", admin_password),
        timeout=30,
    )
    assert answer.ok, answer.text


def _user(name: str) -> dict[str, str]:
    """How a member signs in."""
    return {
        "MLFLOW_TRACKING_USERNAME": name,
        "MLFLOW_TRACKING_PASSWORD": f"{name}, twelve letters",
    }


def test_the_server_says_what_it_has_not_been_told():
    done = subprocess.run(
        [str(ROOT / "lab" / "serve.sh")], env={"PATH": os.environ["PATH"]}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "LAB_DATABASE" in done.stderr


@pytest.fixture
def ray_cluster(lab):
    """A cluster that knows nothing of this checkout, as those of other machines do not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    environment = lab.workspace.environment() | {"RAY_USAGE_STATS_ENABLED": "0"} | SECRET
    del environment["PYTHONPATH"]
    with (lab.workspace.folder / "ray.txt").open("w") as log:
        cluster = subprocess.Popen(
            [*ray, *options, "--num-cpus=2"],
            cwd="/", env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while "started" not in (lab.workspace.folder / "ray.txt").read_text():
            assert cluster.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        cluster.send_signal(signal.SIGTERM)
        cluster.wait(timeout=60)


@pytest.mark.slow
def test_everybody_at_once_loses_and_doubles_nothing(lab, ray_cluster):
    before = len(lab.runs(entry_point="train"))
    finish(
        lab,
        lab.start("train", **TINY),
        lab.start("tune", **TUNE, storage=lab.studies, study_workers="2"),
        lab.start("fewshot_ablation", **GRID, seeds="0"),
        lab.start("fewshot_ablation", **GRID, seeds="1", executor="ray", ray=ray_cluster),
    )
    assert len(lab.runs(entry_point="train")) == before + 1
    trials = lab.runs(entry_point="trial")
    assert Counter(run.data.tags["trial_state"] for run in trials)["lost"] == 0
    assert sorted(int(run.data.tags["trial"]) for run in trials) == list(range(5))
    refits = lab.runs(entry_point="refit")
    assert len({run.data.tags["refit_key"] for run in refits}) == len(refits) in (1, 2)
    assert len(lab.runs(entry_point="tune")) == 1
    workers = lab.runs(entry_point="worker")
    assert {run.info.status for run in workers} == {"FINISHED"}
    assert len(workers) == 2
    cells = lab.runs(entry_point="cell")
    assert len({run.data.tags["cell_key"] for run in cells}) == len(cells) == 8
    assert {run.info.status for run in [*trials, *refits, *cells]} == {"FINISHED"}
    for model in ("sgc", "logistic_regression"):
        versions = lab.client.search_model_versions(f"name = '{model}-phantom-lowdata'")
        assert len({version.run_id for version in versions}) == len(versions) == 4
    for run in [*trials, *refits, *cells]:
        losses = lab.client.get_metric_history(run.info.run_id, "loss")
        steps = [metric.step for metric in losses]
        assert len(set(steps)) == len(steps)
