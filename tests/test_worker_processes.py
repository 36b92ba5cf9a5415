"""Jobs in processes that die: nothing else is lost, and no process is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from sgc_experiments.experiments import worker_processes
from sgc_experiments.experiments.worker_processes import WorkerDied, run_in_processes

ROOT = Path(__file__).parents[1]


def work(job):
    """What the workers do: tell of themselves, or die as they are told."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job == "sleep":
        time.sleep(60)
    return job, os.getpid(), os.environ["OMP_NUM_THREADS"]


def test_a_death_costs_its_job_alone():
    jobs = ["a", "die", "b", "exit", "c"]
    results = dict(run_in_processes(work, jobs, workers=2, threads=3))
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert results[1] == WorkerDied("signal 9")
    assert results[3] == WorkerDied("exit status 3")
    assert [results[k][0] for k in (0, 2, 4)] == ["a", "b", "c"]
    assert {results[k][2] for k in (0, 2, 4)} == {"3"}
    assert os.getpid() not in {results[k][1] for k in (0, 2, 4)}


def test_no_process_is_left_when_the_caller_has_enough():
    before = set(psutil.Process().children())
    results = run_in_processes(work, ["a", "sleep", "sleep"], workers=2, threads=1)
    assert next(results)[0] == 0
    assert set(psutil.Process().children()) > before
    results.close()
    assert not [p for p in set(psutil.Process().children()) - before if _works(p)]


def test_an_idle_worker_that_is_stopped_while_it_ends_says_nothing(capfd):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_serve_and_be_stopped_late, args=(theirs,))
    worker.start()
    theirs.close()
    ours.send(work)
    ours.close()
    worker.join(60)
    assert worker.exitcode == 0
    assert capfd.readouterr().err == ""


def _serve_and_be_stopped_late(connection):
    """Serve; the caller's signal comes at the last moment at which it is not yet left to kill."""
    set_handler = signal.signal

    def stopped_before(number, handler):
        if (number, handler) == (signal.SIGTERM, signal.SIG_DFL):
            os.kill(os.getpid(), signal.SIGTERM)
        return set_handler(number, handler)

    signal.signal = stopped_before
    worker_processes._serve(connection, 1)


def _works(process):
    """Whether it is one of the workers, not the standard library's own resource tracker."""
    return "spawn_main" in " ".join(process.cmdline())


def test_the_workers_end_with_a_killed_caller():
    code = (
        "from tests.test_worker_processes import work\n"
        "from sgc_experiments.experiments.worker_processes import run_in_processes\n"
        "for _ in run_in_processes(work, ['a', 'sleep'], workers=2, threads=1):\n"
        "    print('one', flush=True)\n"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout.readline() == "one\n"
    workers = [p for p in psutil.Process(caller.pid).children() if _works(p)]
    assert workers
    caller.kill()
    caller.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
