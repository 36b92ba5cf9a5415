"""SIGINT and SIGTERM: a run stops where the same command can take it up again.

The first signal raises KeyboardInterrupt, wherever the program is; what must not be torn apart is
done inside :func:`held_back`. Further signals are ignored while the program comes to its end
(`mlflow run` passes a Ctrl-C on that the terminal has already delivered), and a program that has
not ended `SECONDS` after the first one is ended: a tracking server may not answer.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SECONDS = 9.0
EXIT_STATUS = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the program, in the block, as described above."""
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(_signum: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    raise KeyboardInterrupt


def _give_up(_signum: int, _frame: FrameType | None) -> None:
    """End at once: files are whole at any moment, and an open run is found all the same."""
    sys.stderr.write("Stopped without having told the tracking server, which did not answer.\n")
    sys.stderr.flush()
    os._exit(EXIT_STATUS)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let a signal that arrives inside the block take effect at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            signal.signal(number, lambda signum, frame: arrived.append(signum))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def end_with_the_caller() -> None:
    """Wait for the death of the process that started this one, and follow it.

    A caller that is killed closes no line: its workers would wait for ever.
    """
    if caller := multiprocessing.parent_process():
        caller.join()
        os.kill(os.getpid(), signal.SIGKILL)
