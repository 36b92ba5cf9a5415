"""`kill -9` at any moment: the same command finishes in the same run, with the same numbers.

Real processes are killed from outside: at a seeded time, or when something on disk shows that they
are in the middle of it.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import SMALL, Workspace

LIVE = ("loss", "learning_rate", "validation_loss")
COMMANDS = {
    "sgc": ["train", "--checkpoint_every", "5"],
    "resnet10t": ["train", "--checkpoint_every", "5", "--model", "resnet10t"],
    "prepare": ["prepare"],
}
# `prepare` has a phantom and a cache of its own, to be killed in the middle of them.
PARAMETERS = {
    "prepare": {"phantom_patients": "60", "image_size": "32", "workers": "2", "phantom_seed": "7"}
}


def arguments_of(name: str) -> list[str]:
    parameters = PARAMETERS.get(name, SMALL)
    return [*COMMANDS[name], *(part for k, v in parameters.items() for part in (f"--{k}", v))]


def cache_of(name: str, workspace: Workspace) -> Path:
    return workspace.folder / "cache" if name == "prepare" else workspace.cache


def start(name: str, workspace: Workspace) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sgc_experiments", *arguments_of(name)],
        cwd=workspace.folder,
        env=workspace.environment() | {"SGC_CACHE_DIR": str(cache_of(name, workspace))},
        stdout=subprocess.DEVNULL,
        stderr=(workspace.folder / "stderr.txt").open("a"),
    )


def finish(name: str, workspace: Workspace) -> None:
    process = start(name, workspace)
    assert process.wait(timeout=600) == 0, (workspace.folder / "stderr.txt").read_text()[-3000:]


def exists(pattern: str) -> Callable[[Path, Workspace], bool]:
    return lambda cache, workspace: any(cache.glob(pattern))


def has_row(table: str) -> Callable[[Path, Workspace], bool]:
    """Whether a table of the tracking store has a row: the call that wrote it is hardly over."""

    def look(cache: Path, workspace: Workspace) -> bool:
        uri = f"file:{workspace.folder / 'mlflow.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
            return bool(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    return look


# In the middle of what, by what shows it.
EVENTS = {
    "checkpoint": exists("runs/*/*/.checkpoint-*"),
    "second checkpoint": exists("runs/*/*/checkpoint-000000010-*"),
    "run": has_row("runs"),
    "logged model": has_row("logged_models"),
    "registered model": has_row("registered_models"),
    "version": has_row("model_versions"),
    "phantom": exists("phantom/.*"),
    "cache": exists("images/*.partial/journal"),
    "inputs": has_row("inputs"),
}
EVENTS_OF = {
    "prepare": ("phantom", "cache", "run", "inputs"),
    "sgc": ("checkpoint", "second checkpoint", "run", "logged model", "version"),
    "resnet10t": ("checkpoint", "second checkpoint", "inputs", "registered model", "version"),
}


def kill_at(name: str, workspace: Workspace, moment: float | str) -> bool:
    """Start the command and kill it after `moment` seconds, or in the middle of `moment`.

    Returns:
        Whether it was still going.
    """
    process = start(name, workspace)
    began = time.monotonic()
    cache = cache_of(name, workspace)
    while process.poll() is None:
        if isinstance(moment, float):
            if time.monotonic() - began >= moment:
                break
            time.sleep(0.005)
        else:
            with contextlib.suppress(OSError, sqlite3.Error):
                if EVENTS[moment](cache, workspace):
                    break
            time.sleep(0.0005)
    alive = process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True) if alive else []
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left, "processes outlive the one that was killed"
    return alive


def results(workspace: Workspace) -> dict[str, float]:
    """What must not depend on kills: the metrics of the one run that there is."""
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert "failure_reason" not in run.data.tags
    return {
        name: value
        for name, value in run.data.metrics.items()
        if not name.startswith("system/") and "seconds" not in name
    }


def check_nothing_is_doubled_or_left(name: str, workspace: Workspace) -> None:
    (run,) = workspace.runs()
    for metric in run.data.metrics:
        history = workspace.client.get_metric_history(run.info.run_id, metric)
        steps = [point.step for point in history]
        assert len(steps) == len(set(steps)), metric
    if name != "prepare":
        loss = workspace.client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in loss] == list(range(10, 61, 10))
        (model,) = workspace.client.search_logged_models(["0"])
        assert str(model.status) == "READY"
        (version,) = workspace.client.search_model_versions()
        champion = workspace.client.get_model_version_by_alias(version.name, "champion")
        assert champion.run_id == run.info.run_id
    cache = cache_of(name, workspace)
    assert not [path for path in cache.glob("runs/*") if path.is_dir()]
    assert not list(cache.glob("phantom/.*"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, make_workspace):
    """Results and duration of a command that nothing interrupts, by name."""
    known = {}

    def reference(name: str) -> tuple[dict[str, float], float]:
        if name not in known:
            workspace = make_workspace(tmp_path_factory.mktemp(f"unbroken-{name}"))
            began = time.monotonic()
            finish(name, workspace)
            known[name] = results(workspace), time.monotonic() - began
        return known[name]

    return reference


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("sgc", ["checkpoint", "version"]),
        ("resnet10t", ["second checkpoint", "logged model"]),
        ("prepare", ["phantom", "cache"]),
    ],
)
def test_a_command_that_is_killed_twice_finishes_in_its_run(name, moments, workspace, unbroken):
    expected, _ = unbroken(name)
    for moment in moments:
        assert kill_at(name, workspace, moment)
    finish(name, workspace)
    assert results(workspace) == expected
    check_nothing_is_doubled_or_left(name, workspace)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_campaign_of_kills(name, tmp_path, make_workspace, unbroken):
    expected, seconds = unbroken(name)
    events = list(EVENTS_OF[name])
    moments = events + list(np.random.default_rng(9).uniform(0, seconds, 20 - len(events)))
    alive = 0
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        folder.mkdir()
        workspace = make_workspace(folder)
        alive += kill_at(name, workspace, moment)
        finish(name, workspace)
        assert results(workspace) == expected, moment
        check_nothing_is_doubled_or_left(name, workspace)
    print(f"kills of {name}: {len(moments)} moments, {alive} of them in time, all resumed")


def stop(process: subprocess.Popen, signum: int) -> tuple[int, float]:
    """Send a signal; return the exit status and the seconds that the end took."""
    began = time.monotonic()
    process.send_signal(signum)
    status = process.wait(timeout=60)
    return status, time.monotonic() - began


@pytest.mark.parametrize(
    ("name", "moment", "signum"),
    [
        ("sgc", "second checkpoint", signal.SIGTERM),
        ("resnet10t", "second checkpoint", signal.SIGINT),
        ("prepare", "cache", signal.SIGTERM),
    ],
)
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(
    name, moment, signum, workspace, unbroken
):
    expected, _ = unbroken(name)
    cache = cache_of(name, workspace)
    process = start(name, workspace)
    while process.poll() is None and not EVENTS[moment](cache, workspace):
        time.sleep(0.01)
    status, seconds = stop(process, signum)
    assert status == 130
    assert seconds < 10
    (run,) = workspace.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["failure_reason"] == "interrupted"
    if name != "prepare":
        steps = [int(path.name.split("-")[1]) for path in cache.glob("runs/*/*/checkpoint-*")]
        assert max(steps) >= 10
    finish(name, workspace)
    assert results(workspace) == expected
    check_nothing_is_doubled_or_left(name, workspace)
    assert "Traceback" not in (workspace.folder / "stderr.txt").read_text()


@pytest.fixture(autouse=True)
def _leave_no_process():
    before = set(psutil.Process().children(recursive=True))
    yield
    for process in set(psutil.Process().children(recursive=True)) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
