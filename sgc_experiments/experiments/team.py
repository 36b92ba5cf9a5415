"""Several processes for one entry point: who starts them, and what the others do.

The first process runs the entry point as if it were alone, and it alone talks to MLflow, writes
files and decides. For the work that is shared it gives an order, which the others carry out beside
it (see `sgc_experiments.ranks`); between orders they wait. They are started here, on this machine,
with ``processes=2``, or by ``accelerate launch`` or ``torchrun``, on any number of machines.

When the first process ends, however it ends, so do the others.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from sgc_experiments import ranks
from sgc_experiments.data.decode_pool import available_cores
from sgc_experiments.errors import UserError, trace_without_messages
from sgc_experiments.interruption import end_with_the_caller
from sgc_experiments.training import TrainingDiverged
from sgc_experiments.training_settings import choose_device

# The first process may read a large dataset, or draw figures, while the others wait.
_PATIENCE = datetime.timedelta(days=30)
# For the first process to come to an end by itself, when another one has died.
_GRACE_SECONDS = 60.0


class Order(Protocol):
    """Work that all processes do together; picklable."""

    def take_part(self, kept: Any) -> Any:
        """Do it in another process than the first.

        Args:
            kept: what the order before has returned.

        Returns:
            What the next order needs.
        """
        ...


def give(order: Order) -> None:
    """Let the others take part in what this process is about to do; alone, there are none."""
    if ranks.count() > 1:
        ranks.from_first(order)


@contextlib.contextmanager
def team(processes: int, device: str) -> Iterator[None]:
    """Several processes for the block, of which this one is the first.

    Args:
        processes: how many; 1 takes as many as were launched.
        device: as in the parameter of that name.

    Raises:
        UserError: there are not as many devices, or another number was launched.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and processes not in (1, launched):
        raise UserError(
            f"processes={processes}, but the launcher has started {launched}: leave processes out, "
            "or start the command without a launcher."
        )
    if max(processes, launched) == 1:
        yield
        return
    cpu = _computes_on_cpu(device, 1 if launched > 1 else processes)
    if launched > 1:
        try:
            _join(cpu)
            yield
            ranks.from_first(None)
        finally:
            _disband()
        return
    with _helpers(processes, cpu):
        yield


@contextlib.contextmanager
def _helpers(processes: int, cpu: bool) -> Iterator[None]:
    """Start the other processes and join them; they are gone after the block."""
    from accelerate.utils import patch_environment
    from torch.multiprocessing.spawn import start_processes

    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, available_cores() // processes)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = start_processes(
        _help, (processes, port, threads, cpu), processes - 1, join=False, daemon=True
    )
    joined, over = threading.Event(), threading.Event()
    watch = (started.processes, joined, over)
    threading.Thread(target=_end_with_a_helper, args=watch, daemon=True).start()
    try:
        with patch_environment(**_place(0, processes, port, threads)):
            _join(cpu, threads)
        joined.set()
        yield
        over.set()
        ranks.from_first(None)
    finally:
        over.set()
        _disband()
        for process in started.processes:
            process.join(1.0)
            process.kill()
            process.join()


def _end_with_a_helper(
    helpers: Sequence[BaseProcess], joined: threading.Event, over: threading.Event
) -> None:
    """End this process if it waits for another one that is dead: not all backends notice."""
    wait([helper.sentinel for helper in helpers])
    if not over.wait(_GRACE_SECONDS if joined.is_set() else 0):
        print("One of the processes that train the model has ended.", file=sys.stderr, flush=True)
        os._exit(1)


def _disband() -> None:
    """Leave the others: a thread that outlives the interpreter would abort the process."""
    from accelerate.state import AcceleratorState, PartialState
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    AcceleratorState._reset_state()
    PartialState._reset_state()


def _help(index: int, processes: int, port: int, threads: int, cpu: bool) -> None:
    threading.Thread(target=end_with_the_caller, daemon=True).start()
    os.environ.update(_place(index + 1, processes, port, threads))
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    _serve(cpu, threads)


def _place(number: int, processes: int, port: int, threads: int) -> dict[str, str]:
    """The environment by which a process finds the others."""
    values = {
        "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "MASTER_PORT": port,
        "LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    return {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _computes_on_cpu(device: str, processes: int) -> bool:
    """Whether the processes of this machine share its CPU, rather than having a GPU each.

    Raises:
        UserError: a device that cannot be shared, or too few GPUs.
    """
    import torch

    kind = choose_device(device).type
    if kind not in ("cpu", "cuda") or ":" in device:
        raise UserError(f"device={device} is one device: several processes take auto, cpu or cuda.")
    if kind == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(
            f"processes={processes} need a GPU each, and there are {torch.cuda.device_count()}: "
            "lower processes, or use device=cpu."
        )
    return kind == "cpu"


def _join(cpu: bool, threads: int | None = None) -> None:
    import torch
    from accelerate.state import PartialState

    if threads:
        torch.set_num_threads(threads)
    with ranks.talking():
        PartialState(cpu=cpu, timeout=_PATIENCE)


def serve(device: str) -> None:
    """Take part in the first process's orders, in a process that a launcher has started."""
    logging.getLogger().setLevel(logging.ERROR)
    _serve(_computes_on_cpu(device, 1))


def _serve(cpu: bool, threads: int | None = None) -> None:
    """Carry out orders until there are no more, or the first process is gone.

    A signal reaches every process; what it means is the first one's decision.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    kept: Any = None
    try:
        _join(cpu, threads)
        while (order := ranks.from_first(None)) is not None:
            kept = order.take_part(kept)
    except (ranks.RankLost, TrainingDiverged):
        sys.exit(1)  # the first process tells of it
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        print(trace_without_messages(error), file=sys.stderr)
        sys.exit(1)
    finally:
        _disband()
