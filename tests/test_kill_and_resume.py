"""`kill -9` at any moment: the same command finishes in the same run, with the same numbers.

Real processes are killed from outside: at a seeded time, or when something on disk shows that they
are in the middle of it.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow.entities import Run

from tests.conftest import SMALL, Workspace

COMMANDS = {
    "sgc": ["train", "--checkpoint_every", "5"],
    "resnet10t": ["train", "--checkpoint_every", "5", "--model", "resnet10t"],
    "prepare": ["prepare"],
    "tune": ["tune"],
    "fewshot_ablation": ["fewshot_ablation"],
}
PARAMETERS = {
    # With a phantom and a cache of its own, to be killed in the middle of them.
    "prepare": {"phantom_patients": "60", "image_size": "32", "workers": "2", "phantom_seed": "7"},
    "tune": SMALL
    | {
        "channels": "8,16",
        "search": "channels=8-16|4-8,evaluations=8|16",
        "budget": "steps:20",
        "trial_budget": "steps:20",
        "validate_every": "5",
        "checkpoint_every": "5",
        "trials": "6",
        "refit_seeds": "1",
        "lost_after": "3",
    },
    "fewshot_ablation": SMALL
    | {
        "channels": "8,16",
        "models": "sgc,logistic_regression",
        "sizes": "0.5,all",
        "seeds": "0",
        "budget": "steps:20",
        "validate_every": "10",
        "checkpoint_every": "5",
    },
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


def exists(*patterns: str) -> Callable[[Path, Workspace], bool]:
    return lambda cache, workspace: any(any(cache.glob(pattern)) for pattern in patterns)


def has_row(table: str) -> Callable[[Path, Workspace], bool]:
    """Whether a table of the tracking store has a row: the call that wrote it is hardly over."""

    def look(cache: Path, workspace: Workspace) -> bool:
        uri = f"file:{workspace.folder / 'mlflow.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
            return bool(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    return look


# In the middle of what, by what shows it. A checkpoint is written in milliseconds: who sees none of
# them begin stops after the last.
EVENTS = {
    "checkpoint": exists("runs/*/*/.checkpoint-*", "runs/*/*/checkpoint-000000060-*"),
    "second checkpoint": exists("runs/*/*/checkpoint-000000010-*"),
    "run": has_row("runs"),
    "logged model": has_row("logged_models"),
    "registered model": has_row("registered_models"),
    "version": has_row("model_versions"),
    "phantom": exists("phantom/.*"),
    "cache": exists("images/*.partial/journal"),
    "inputs": has_row("inputs"),
    "end of a training": has_row("metrics WHERE key = 'training_seconds'"),
}
EVENTS_OF = {
    "prepare": ("phantom", "cache", "run", "inputs"),
    "sgc": ("checkpoint", "second checkpoint", "run", "logged model", "version"),
    "resnet10t": ("checkpoint", "second checkpoint", "inputs", "registered model", "version"),
    "tune": ("run", "end of a training", "logged model", "version"),
    "fewshot_ablation": ("run", "inputs", "logged model", "registered model", "version"),
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
    process.send_signal(signal.SIGSTOP)  # so that no child is born while they are counted
    children = psutil.Process(process.pid).children(recursive=True) if alive else []
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left, "processes outlive the one that was killed"
    return alive


def is_finished(name: str, workspace: Workspace) -> bool:
    return "FINISHED" in [
        run.info.status
        for run in workspace.runs()
        if run.data.tags["entry_point"] == COMMANDS[name][0]
    ]


def metrics_of(run: Run) -> dict[str, float]:
    """Those that are about the result, not about the machine."""
    return {
        name: value
        for name, value in run.data.metrics.items()
        # Lost trials are counted, and have numbers too.
        if not name.startswith("system/")
        and "seconds" not in name
        and name not in ("trials_lost", "best_trial")
    }


def results(workspace: Workspace) -> dict[str, dict[str, float] | str]:
    """What must not depend on kills: the metrics of every piece of work, by what it is.

    Each has one finished run, and there are no others but those of lost trials.
    """
    client, found = workspace.client, {}
    trials = 0
    for run in reversed(workspace.runs()):
        tags = run.data.tags
        if run.info.status != "FINISHED":
            assert tags["trial_state"] == "lost"
            continue
        if "continued_in" in tags:  # of `mlflow run`
            assert not run.data.metrics
            continue
        assert "failure_reason" not in tags
        kind = tags["entry_point"]
        if kind == "trial":
            key, trials = f"trial {trials}", trials + 1
        else:
            key = tags.get("cell_key") or tags.get("refit_key") or kind
        assert key not in found
        found[key] = metrics_of(run)
        if kind == "fewshot_ablation":
            found["curves"] = (Path(run.info.artifact_uri) / "curves.csv").read_text()
    models = client.search_logged_models(["0"])
    assert {str(model.status) for model in models} <= {"READY"}
    versions = client.search_model_versions()
    found["registry"] = {"models": float(len(models)), "versions": float(len(versions))}
    return found


def run_folders(cache: Path) -> set[Path]:
    return {path for path in cache.glob("runs/*") if path.is_dir()}


def check_nothing_is_doubled_or_left(
    name: str, workspace: Workspace, before: set[Path] = frozenset()
) -> None:
    """`before`: the folders of runs that were in the cache already, of other tests."""
    for run in workspace.runs():
        for metric in run.data.metrics:
            history = workspace.client.get_metric_history(run.info.run_id, metric)
            steps = [point.step for point in history]
            assert len(steps) == len(set(steps)), (run.info.run_name, metric)
    if COMMANDS[name][0] == "train":
        (run,) = workspace.runs()
        loss = workspace.client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in loss] == list(range(10, 61, 10))
        (version,) = workspace.client.search_model_versions()
        champion = workspace.client.get_model_version_by_alias(version.name, "champion")
        assert champion.run_id == run.info.run_id
    cache = cache_of(name, workspace)
    assert not run_folders(cache) - before
    assert not list(cache.glob("phantom/.*"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, make_workspace):
    """Results and duration of a command that nothing interrupts, by name."""
    known = {}

    def reference(name: str) -> tuple[dict, float]:
        if name not in known:
            workspace = make_workspace(tmp_path_factory.mktemp(f"unbroken-{name}"))
            began = time.monotonic()
            finish(name, workspace)
            known[name] = results(workspace), time.monotonic() - began
        return known[name]

    return reference


def stop_at(name: str, workspace: Workspace, moment: str, signum: int) -> None:
    """Start the command and stop it in the middle of `moment`: within 10 s, in good order."""
    process = start(name, workspace)
    cache = cache_of(name, workspace)
    while process.poll() is None and not EVENTS[moment](cache, workspace):
        time.sleep(0.005)
    began = time.monotonic()
    process.send_signal(signum)
    assert process.wait(timeout=120) == 130
    assert time.monotonic() - began < 10
    runs = workspace.runs()
    stopped = [run for run in runs if run.info.status != "FINISHED"]
    assert stopped
    if COMMANDS[name][0] not in ("tune", "fewshot_ablation"):  # which have runs below them
        assert len(stopped) == len(runs) == 1
    for run in stopped:
        assert run.info.status == "KILLED"
        assert run.data.tags["failure_reason"] == "interrupted"
    if name != "prepare":
        steps = [int(path.name.split("-")[1]) for path in cache.glob("runs/*/*/checkpoint-*")]
        assert max(steps) >= 10


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("sgc", ["SIGTERM in second checkpoint", "checkpoint", "version"]),
        ("resnet10t", ["SIGINT in second checkpoint", "checkpoint", "logged model"]),
        ("prepare", ["phantom", "SIGTERM in cache", "inputs"]),
    ],
)
def test_a_command_that_is_killed_and_stopped_finishes_in_its_run(
    name, moments, workspace, unbroken
):
    expected, _ = unbroken(name)
    before = run_folders(cache_of(name, workspace))
    for moment in moments:
        signum, _, event = moment.rpartition(" in ")
        if signum:
            stop_at(name, workspace, event, signal.Signals[signum])
        else:
            assert kill_at(name, workspace, event)
    if name == "prepare":  # `mlflow run` opens a run, which is given up for the one that is there
        done = replace(workspace, cache=cache_of(name, workspace)).project(
            "prepare", **PARAMETERS[name]
        )
        assert done.returncode == 0, done.stderr
        assert "stays empty" in done.stderr
    else:
        finish(name, workspace)
    assert results(workspace) == expected
    check_nothing_is_doubled_or_left(name, workspace, before)
    if name != "prepare":
        assert "Traceback" not in (workspace.folder / "stderr.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["tune", "fewshot_ablation"])
def test_a_grid_that_is_stopped_finishes_in_its_run(name, signum, workspace, unbroken):
    expected, _ = unbroken(name)
    before = run_folders(cache_of(name, workspace))
    stop_at(name, workspace, "second checkpoint", signum)
    finish(name, workspace)
    assert results(workspace) == expected
    check_nothing_is_doubled_or_left(name, workspace, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_campaign_of_kills(name, tmp_path, make_workspace, unbroken, figures_of_campaign):
    expected, seconds = unbroken(name)
    events = list(EVENTS_OF[name])
    moments = events + list(np.random.default_rng(9).uniform(0, seconds, 20 - len(events)))
    alive, began = 0, time.monotonic()
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        folder.mkdir()
        workspace = make_workspace(folder)
        alive += kill_at(name, workspace, moment)
        if is_finished(name, workspace):  # the process was ending; its folder may still be there
            for left in (cache_of(name, workspace) / "runs").glob("*/"):
                shutil.rmtree(left)
        else:
            finish(name, workspace)
        assert results(workspace) == expected, moment
        check_nothing_is_doubled_or_left(name, workspace)
    figures_of_campaign(
        f"kills of {name}: {len(moments)} moments, {alive} before the end; all {len(moments)} came "
        f"to the numbers of an unbroken run ({(time.monotonic() - began) / 60:.0f} min)"
    )


@pytest.fixture(autouse=True)
def _leave_no_process():
    before = set(psutil.Process().children(recursive=True))
    yield
    for process in set(psutil.Process().children(recursive=True)) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
