"""Jobs on a real local Ray cluster: a death costs its job alone, and cells come to the same."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sgc_experiments.experiments.ray_executor import run_on_ray
from sgc_experiments.experiments.worker_processes import WorkerDied
from tests.conftest import ROOT, SMALL

GRID = SMALL | {
    "channels": "8,16", "models": "sgc,logistic_regression", "sizes": "all", "seeds": "0,1",
    "budget": "steps:40", "validate_every": "20", "checkpoint_every": "5", "workers": "2",
}  # fmt: skip
ARGUMENTS = [part for name, value in GRID.items() for part in (f"--{name}", value)]


def work(job):
    """Dies as it is told: always, or at the first attempt, which leaves a file."""
    what, place = job
    if what == "die" or (what == "die once" and not os.path.exists(place)):
        open(place, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return what, os.getpid(), os.environ["OMP_NUM_THREADS"]


def test_a_death_is_repeated_once_and_costs_its_job_alone(tmp_path):
    jobs = [(what, str(tmp_path / what)) for what in ("a", "die", "die once", "b")]
    found = dict(run_on_ray(work, jobs, workers=2, threads=1))
    assert sorted(found) == [0, 1, 2, 3]
    assert found[1] == WorkerDied("WorkerCrashedError")
    assert [found[k][0] for k in (0, 2, 3)] == ["a", "die once", "b"]
    assert os.getpid() not in {found[k][1] for k in (0, 2, 3)}
    assert found[0][2] == "1"


def test_without_ray_a_sentence_names_the_extra():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from sgc_experiments.experiments.ray_executor import run_on_ray\n"
        "next(run_on_ray(print, [1], workers=1, threads=1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert 'UserError: executor=ray needs Ray: pip install -e ".[ray]"' in done.stderr


@pytest.mark.parametrize("command", [["fewshot_ablation"], ["tune", "--study_workers", "2"]])
def test_a_cluster_cannot_share_a_file(workspace, command):
    options = ["--executor", "ray", "--phantom_patients", "40", "--image_size", "32"]
    done = workspace.module(*command, *options, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2
    assert "set MLFLOW_TRACKING_URI to a server" in done.stderr


def test_a_killed_worker_costs_its_cell_alone(workspace):
    """The cell is begun again in its run, which goes on from the last checkpoint."""
    command = [sys.executable, "-m", "sgc_experiments", "fewshot_ablation", *ARGUMENTS]
    process = subprocess.Popen(
        [*command, "--executor", "ray"],
        cwd=workspace.folder,
        env=workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=(workspace.folder / "stderr.txt").open("w"),
    )
    runs = workspace.cache / "runs"
    while not any(runs.glob("*/*/checkpoint-00000001*")):
        assert process.poll() is None, (workspace.folder / "stderr.txt").read_text()[-3000:]
        time.sleep(0.05)
    (victim, *_) = [p for p in psutil.Process(process.pid).children(recursive=True) if _fits(p)]
    victim.kill()
    assert process.wait(timeout=900) == 0, (workspace.folder / "stderr.txt").read_text()[-3000:]
    cells = [run for run in workspace.runs() if run.data.tags["entry_point"] == "cell"]
    assert len(cells) == len({run.data.tags["cell_key"] for run in cells}) == 4
    assert {run.info.status for run in cells} == {"FINISHED"}
    for run in cells:
        if run.data.tags["model"] == "sgc":
            losses = workspace.client.get_metric_history(run.info.run_id, "loss")
            assert sorted(metric.step for metric in losses) == [10, 20, 30, 40]


def _fits(process: psutil.Process) -> bool:
    """Whether a process of Ray is at work on a job; it names itself after the function."""
    return "ray::run_cell" in " ".join(process.cmdline())


@pytest.mark.slow
def test_workers_on_a_cluster_share_a_study(workspace):
    search = ["--search", "channels=8-16|4-8", "--trials", "4", "--trial_budget", "steps:20"]
    study = [*search, "--refit_seeds", "1", "--executor", "ray", "--study_workers", "2"]
    small = [part for name, value in SMALL.items() for part in (f"--{name}", value)]
    done = workspace.module("tune", *small, "--channels", "8,16", "--workers", "1", *study)
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = {}
    for run in workspace.runs():
        kinds.setdefault(run.data.tags["entry_point"], []).append(run)
        assert run.info.status == "FINISHED"
    assert len(kinds["tune"]) == 1
    assert len(kinds["worker"]) == 2
    assert sorted(int(run.data.tags["trial"]) for run in kinds["trial"]) == [0, 1, 2, 3]
    assert len({run.data.tags["refit_key"] for run in kinds["refit"]}) == len(kinds["refit"])
