"""Work on untrusted files in processes that may die.

One file is in flight per worker. A worker has an address-space limit and an alarm clock of its own;
when it dies (abort, kill, memory, alarm), its file is rejected, a new worker takes its place, and
every other file is still read. The executors of the standard library give up the whole pool at the
first death.

Workers are started as fresh interpreters (`decode_worker`), not forked: torch has threads, and a
fork would inherit their locks. Nor does a worker import the caller's main module.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from sgc_experiments.data.rejection import Reason, RejectedFile
from sgc_experiments.progress import progress_bar

TIMEOUT_SECONDS = 60.0
MEMORY_BYTES = 3 << 30

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_isolated(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int = 0,
    timeout: float = TIMEOUT_SECONDS,
    memory: int = MEMORY_BYTES,
    progress: str | None = None,
) -> Iterator[tuple[int, Result | RejectedFile]]:
    """Apply a function to every item, each in a limited process.

    Args:
        task: an importable function.
        items: what to work on, picklable.
        workers: number of processes, 0 for one per core. Results do not depend on it.
        timeout: seconds of wall time per item.
        memory: address space of a worker in bytes.
        progress: title of a progress bar with the remaining time, or None for none.

    Yields:
        (position in `items`, result or rejection), in order of completion.

    Raises:
        RuntimeError: workers cannot start.
    """
    waiting = deque(range(len(items)))
    at_work: dict[Connection, _Worker[Result]] = {}

    def start() -> None:
        worker = _Worker(task, timeout, memory)
        at_work[worker.connection] = worker

    shown = progress is not None
    with progress_bar(total=len(items), title=progress or "", unit="file", shown=shown) as bar:
        try:
            for _ in range(min(workers or available_cores(), len(items))):
                start()
            while at_work:
                ready = wait(list(at_work))
                for connection in [c for c in at_work if c in ready]:
                    worker = at_work[connection]
                    position, result = worker.position, worker.receive()
                    if worker.dead:
                        del at_work[connection]
                        if waiting:
                            start()
                    elif waiting:
                        worker.position = waiting.popleft()
                        worker.send(items[worker.position])
                    else:
                        at_work.pop(connection).stop()
                    if position is not None:
                        bar.update()
                        yield position, result
        finally:
            for worker in at_work.values():
                worker.stop()


class IsolatedTask(Generic[Item, Result]):
    """A function in one limited process that stays between calls, as a server needs it.

    Calls from several threads take turns. A process that dies is replaced at the next call.

    Args:
        task: an importable function.
        timeout: seconds of wall time per call.
        memory: address space of the process in bytes.
    """

    def __init__(
        self,
        task: Callable[[Item], Result],
        *,
        timeout: float = TIMEOUT_SECONDS,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._start = partial(_Worker[Result], task, timeout, memory)
        self._worker: _Worker[Result] | None = None
        self._lock = threading.Lock()

    def __call__(self, item: Item) -> Result | RejectedFile:
        """Apply the function.

        Raises:
            RuntimeError: the process cannot start.
        """
        with self._lock:
            # One that was killed while it waited (for memory, say) tells nothing about the item.
            if self._worker is None or self._worker.ended():
                self._worker = None
                worker = self._start()
                worker.receive()  # it reports for duty
                self._worker = worker
            worker, worker.position = self._worker, 0
            worker.send(item)
            result = worker.receive()
            if worker.dead:
                self._worker = None
            return result

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None


class _Worker(Generic[Result]):
    """One worker process and the parent's end of the line to it.

    Attributes:
        connection: becomes readable when there is a result, or at the worker's death.
        position: of the item in flight; None until the worker has reported for duty.
        dead: found so by `receive`.
    """

    def __init__(self, task: Callable[..., Result], timeout: float, memory: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "sgc_experiments.data.decode_worker"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(timeout), str(memory)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # decoders print what they find in files
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
        self.connection = Connection(ours.detach())
        self.position: int | None = None
        self.dead = False
        self.send(task)

    def send(self, message: object) -> None:
        # A dead worker is found out by `receive`, which all messages are answered to.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Result | RejectedFile:
        """Return the result of the item in flight, or the rejection that its death amounts to."""
        try:
            result: Result | RejectedFile = self.connection.recv()
        except (EOFError, OSError):
            self.dead = True
            self.connection.close()
            timed_out = self._process.wait() == -signal.SIGALRM
            if self.position is None:
                raise RuntimeError("A decode worker could not start.") from None
            return RejectedFile(Reason.TIMEOUT if timed_out else Reason.CRASH)
        if isinstance(result, RejectedFile) and result.place:
            _log.warning("A file was rejected after a %s", result.place)
        return result

    def ended(self) -> bool:
        """Whether the process has ended already; its end of the line is closed then."""
        if self._process.poll() is None:
            return False
        self.connection.close()
        return True

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """Return the workers' environment: the caller's import path, one thread per library."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": path}
