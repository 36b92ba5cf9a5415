"""Workers die, hang and overeat; every other file is still read, whatever the number of workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sgc_experiments.data.decode_pool import IsolatedTask, run_isolated
from sgc_experiments.data.rejection import Reason, RejectedFile

GIB = 1 << 30


def square(number: int) -> int:
    return number * number


def misbehave(how: str) -> str:
    """Run in a worker: do what `how` says, or answer."""
    if how == "abort":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(0)
    if how == "hang":
        while True:
            time.sleep(1)
    if how == "eat":
        return str(len(bytearray(2 * GIB)))
    if how == "reject":
        raise RejectedFile(Reason.BLANK)
    if how == "fault":
        raise LookupError("MARKER")
    if how == "print":
        print("MARKER", flush=True)
        os.write(2, b"MARKER")
    return how


def loaded_modules(_: int) -> list[str]:
    return [name for name in ("torch", "mlflow", "pandas", "sklearn") if name in sys.modules]


EXPECTED = {
    "abort": Reason.CRASH,
    "kill": Reason.CRASH,
    "exit": Reason.CRASH,
    "hang": Reason.TIMEOUT,
    "eat": Reason.MEMORY,
    "reject": Reason.BLANK,
    "fault": Reason.UNEXPECTED,
}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_death_is_one_rejection_and_all_else_is_done(workers, caplog, capfd):
    items = ["good", *EXPECTED, "print", *(f"good {n}" for n in range(20))]
    results = run_isolated(misbehave, items, workers=workers, timeout=1.0, memory=GIB)
    outcome = {items[position]: result for position, result in results}

    assert set(outcome) == set(items)
    for how in items:
        result = outcome[how]
        expected = EXPECTED.get(how, how)
        assert (result.reason if isinstance(result, RejectedFile) else result) == expected
    # Type and place of a fault are told, its message is not; nor is what decoders print.
    assert any("LookupError in test_decode_pool.py" in message for message in caplog.messages)
    assert "MARKER" not in caplog.text + "".join(capfd.readouterr())


def test_no_items_start_no_worker():
    assert list(run_isolated(square, [])) == []


def test_leaving_early_leaves_no_process_behind():
    before = set(psutil.Process().children())  # of other tests: a fork server stays for good
    started = set()
    for _ in run_isolated(misbehave, ["good", "hang", "hang"], workers=3, timeout=60):
        started = set(psutil.Process().children()) - before
        break
    assert started
    assert not set(psutil.Process().children()) & started


def test_a_worker_is_light():
    (_, modules), *_ = run_isolated(loaded_modules, [0])
    assert modules == []


def test_a_worker_that_cannot_start_is_an_error_not_a_loop(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="could not start"):
        list(run_isolated(square, [1, 2, 3], workers=2))


def test_a_worker_ends_with_its_caller(tmp_path):
    script = (
        "import sys\n"
        "from sgc_experiments.data.decode_pool import run_isolated\n"
        "from tests.data.test_decode_pool import report_and_hang\n"
        "list(run_isolated(report_and_hang, [sys.argv[1]], timeout=2.0))\n"
    )
    report = tmp_path / "worker"
    caller = subprocess.Popen([sys.executable, "-c", script, str(report)])
    try:
        pid = int(wait_for(report.read_text, until=str.strip))
        caller.kill()
        caller.wait()
        wait_for(lambda: Path(f"/proc/{pid}").exists(), until=lambda alive: not alive)
    finally:
        caller.kill()


def report_and_hang(report: str) -> None:
    """Run in a worker: write its process number, then hang."""
    Path(report).write_text(str(os.getpid()))
    time.sleep(600)


def wait_for(look, *, until, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            seen = look()
        except OSError:
            seen = None
        if seen is not None and until(seen):
            return seen
        time.sleep(0.05)
    raise AssertionError("it never happened")


def test_a_task_that_stays_survives_every_death():
    before = psutil.Process().children()
    task = IsolatedTask(misbehave, timeout=2.0, memory=GIB)
    for how in ("hello", "abort", "hello", "hang", "reject", "hello"):
        answer = task(how)
        if how in EXPECTED:
            assert answer.reason == EXPECTED[how]
        else:
            assert answer == how
    task.close()
    assert task("again") == "again"
    task.close()
    assert psutil.Process().children() == before


def test_a_task_whose_process_is_killed_while_it_waits_starts_another():
    before = psutil.Process().children()
    task = IsolatedTask(misbehave, timeout=20.0, memory=GIB)
    assert task("hello") == "hello"
    (idle,) = set(psutil.Process().children()) - set(before)
    idle.kill()
    wait_for(idle.status, until=lambda status: status == psutil.STATUS_ZOMBIE)
    assert task("hello again") == "hello again"
    task.close()
    assert psutil.Process().children() == before
