"""Jobs in local processes that may die: one job at a time each, and a share of the cores each.

A process that dies costs its job alone; another one takes its place. The executors of the standard
library give up all jobs at the first death. When the caller dies, however it dies, so do they.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, TypeVar

from sgc_experiments.interruption import end_with_the_caller

_SECONDS_TO_STOP = 20.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkerDied:
    """What a job comes to whose process died.

    Attributes:
        cause: what is known of it, such as "signal 9".
    """

    cause: str


def run_in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, threads: int
) -> Generator[tuple[int, Result | WorkerDied]]:
    """Apply a function to every job, each in one of several processes.

    Args:
        work: an importable function that raises nothing.
        jobs: its arguments, picklable; taken in this order.
        workers: number of processes.
        threads: that each of them may use.

    Yields:
        (position in ``jobs``, result), in order of completion.
    """
    waiting = deque(range(len(jobs)))
    at_work: dict[Connection, _Worker] = {}

    def start() -> None:
        worker = _Worker(work, threads)
        at_work[worker.connection] = worker
        hand_out(worker)

    def hand_out(worker: _Worker) -> None:
        worker.position = waiting.popleft()
        worker.send(jobs[worker.position])

    try:
        for _ in range(min(workers, len(jobs))):
            start()
        while at_work:
            ready = wait(list(at_work))
            for connection in [c for c in at_work if c in ready]:
                worker = at_work[connection]
                position, result = worker.position, worker.receive()
                if waiting and not isinstance(result, WorkerDied):
                    hand_out(worker)
                else:
                    _stop(at_work.pop(connection))
                    if waiting:
                        start()
                yield position, result
    finally:
        _stop(*at_work.values())


class _Worker:
    """One process and the caller's end of the line to it.

    Attributes:
        connection: becomes readable when there is a result, or at the process's death.
        process: the other end.
        position: of the job in flight.
    """

    def __init__(self, work: Callable[..., object], threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # torch has threads: a fork inherits locks
        self.connection, theirs = context.Pipe()
        self.position = -1
        self.process = context.Process(target=_serve, args=(theirs, threads))
        self.process.start()
        theirs.close()
        self.send(work)

    def send(self, message: object) -> None:
        # A dead process is found out by `receive`.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(_SECONDS_TO_STOP)
            code = self.process.exitcode
            return WorkerDied(f"signal {-code}" if code and code < 0 else f"exit status {code}")


def _stop(*workers: _Worker) -> None:
    """Let idle processes go and interrupt busy ones, once each, and wait for their end.

    All at once: a program that is stopped has only seconds for them.
    """
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_SECONDS_TO_STOP)
        worker.process.kill()
        worker.process.join()


def _serve(connection: Connection, threads: int) -> None:
    """Work until the caller closes the line. Nothing heavy is imported before the threads are set.

    Ctrl-C reaches every process of a terminal; here the caller decides what it means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=end_with_the_caller, daemon=True).start()
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        try:
            work = connection.recv()
            while True:
                connection.send(work(connection.recv()))
        finally:  # nothing is left to be put in order; a caller stops idle processes just now
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
