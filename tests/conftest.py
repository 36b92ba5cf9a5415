"""Real runs for the tests: a real MLflow store, real projects, small phantoms."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from sgc_experiments.data import ImageDataset, load_dataset
from tests.postgres import PostgresServer, running_server

ROOT = Path(__file__).parents[1]
# A phantom and a budget that exercise every part in seconds; no accuracy is asked of them.
SMALL = {
    "phantom_patients": "40",
    "image_size": "32",
    "budget": "steps:60",
    "validate_every": "30",
    "bootstrap": "200",
    "workers": "2",
}
# Variables that an interrupted run sets for its process.
HURRIED = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
CAMPAIGN = "figures of a campaign"


@dataclass(frozen=True)
class Workspace:
    """A folder with an MLflow store of its own, and the suite's cache."""

    folder: Path
    cache: Path

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.tracking_uri)

    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SGC_"))},
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "SGC_CACHE_DIR": str(self.cache),
            # Whatever `mlflow run` starts must find the interpreter that runs the tests.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def module(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m sgc_experiments ...` in this workspace."""
        return self._run([sys.executable, "-m", "sgc_experiments", *arguments], variables)

    def project(self, entry_point: str, **parameters: str) -> subprocess.CompletedProcess[str]:
        """`mlflow run . -e ENTRY_POINT --env-manager local -P ...` in this workspace."""
        pairs = [part for k, v in parameters.items() for part in ("-P", f"{k}={v}")]
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry_point]
        return self._run([*command, "--env-manager", "local", *pairs], {})

    def _run(self, command, variables) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment() | variables,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def runs(self) -> list[mlflow.entities.Run]:
        """All runs of the default experiment, newest first."""
        return self.client.search_runs(["0"], order_by=["attributes.start_time DESC"])


def workspace_from(database: Path, folder: Path, cache: Path) -> Workspace:
    """A workspace with a copy of a store, whose new runs keep their artifacts in its folder."""
    copy = folder / "mlflow.db"
    shutil.copyfile(database, copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", [str(folder / "mlruns")])
    return Workspace(folder, cache)


@pytest.fixture
def figures_of_campaign(record_property) -> Callable[[str], None]:
    """Takes the line of figures that a long campaign ends in; all are shown at the end."""
    return lambda line: record_property(CAMPAIGN, line)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    lines = {
        value
        for report in reports
        for name, value in getattr(report, "user_properties", [])
        if name == CAMPAIGN
    }
    if lines:
        terminalreporter.section("campaigns")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One cache for the whole session, so that a phantom is rendered once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An MLflow database without runs: making one costs seconds, copying it nothing."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture(scope="session")
def make_workspace(cache, empty_store) -> Callable[[Path], Workspace]:
    """Makes a workspace of a folder."""

    def make(folder: Path) -> Workspace:
        return workspace_from(empty_store, folder, cache)

    return make


@pytest.fixture
def workspace(tmp_path, make_workspace) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, make_workspace) -> Workspace:
    """A workspace in which the main job ran twice with the same seed, through `mlflow run`."""
    workspace = make_workspace(tmp_path_factory.mktemp("finished"))
    for _ in range(2):
        done = workspace.project("train", **SMALL)
        assert done.returncode == 0, done.stdout + done.stderr
    return workspace


@pytest.fixture(scope="module")
def store(finished, tmp_path_factory) -> Workspace:
    """A copy of the store of `finished`, which others read too, for a module to add to."""
    return workspace_from(
        finished.folder / "mlflow.db", tmp_path_factory.mktemp("store"), finished.cache
    )


@pytest.fixture(scope="session")
def phantom(finished) -> ImageDataset:
    """The images of the phantom that the model of `finished` was fitted on."""
    return load_dataset(
        "phantom", data_dir=None, cache_dir=finished.cache, input="roi", image_size=32, workers=1,
        phantom={"patients": 40, "seed": 0, "difficulty": "standard"}, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the tests' own."""
    with running_server() as server:
        yield server
