"""The process behind `decode_pool`: receives items, sends results, keeps its limits.

Run by `decode_pool` only. Imports no torch and no MLflow, so that it starts quickly.
"""

import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from sgc_experiments.data.rejection import Reason, RejectedFile

# pydicom imports it to download example files: a fifth of the start-up time, and no decoder of
# untrusted files needs a network library.
sys.modules["requests"] = None  # type: ignore[assignment]


def main(descriptor: int, timeout: float, memory: int) -> None:
    """Serve items until the caller closes the line.

    Args:
        descriptor: of the socket to the caller.
        timeout: seconds of wall time per item; the kernel then ends the process, even in the middle
            of a decoder, even if the caller is gone.
        memory: address space in bytes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the caller decides what they mean
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = Connection(descriptor)
    try:
        task = connection.recv()
        with contextlib.suppress(ValueError, OSError):  # not every system has this limit
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump holds patient data
        connection.send("ready")
        while True:
            item = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, timeout)
            result = _result(task, item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _result(task: Callable[[Any], object], item: object) -> object:
    """Return the task's result or its rejection."""
    try:
        return task(item)
    except RejectedFile as rejection:
        return rejection
    except MemoryError:
        return RejectedFile(Reason.MEMORY)
    # A hostile file may find a way that nobody thought of. It must not end the whole ingest, and
    # must not be hidden: the caller logs type and place. The message may quote the file.
    except Exception as fault:
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        place = f"{type(fault).__name__} in {os.path.basename(frame.filename)}, line {frame.lineno}"
        return RejectedFile(Reason.UNEXPECTED, place)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
