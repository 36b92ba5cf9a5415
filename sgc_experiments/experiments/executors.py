"""Where the cells of an ablation and the workers of a study run: here, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from sgc_experiments.errors import UserError
from sgc_experiments.experiments.ray_executor import run_on_ray
from sgc_experiments.experiments.worker_processes import WorkerDied, run_in_processes

_RAY = "ray"

Job = TypeVar("Job")
Result = TypeVar("Result")


def execute(
    executor: str,
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    gpu: bool,
) -> Generator[tuple[int, Result | WorkerDied]]:
    """Apply a function to every job; see `run_in_processes` and `run_on_ray`.

    Args:
        executor: "local" or "ray".
        work: an importable function that raises nothing.
        jobs: its arguments, picklable.
        workers: jobs at work at once.
        threads: that each may use.
        gpu: whether each needs a GPU.
    """
    if executor == _RAY:
        return run_on_ray(work, jobs, workers=workers, threads=threads, gpus=int(gpu))
    return run_in_processes(work, jobs, workers=workers, threads=threads)


def is_cluster(executor: str) -> bool:
    """Whether the jobs may run on other machines than this one."""
    return executor == _RAY and bool(os.environ.get("RAY_ADDRESS"))


def check_shared(executor: str, uri: str, what: str) -> None:
    """Check that the machines of a cluster can reach what they share.

    Args:
        executor: "local" or "ray".
        uri: of a database or a server.
        what: the parameter or variable that sets it.

    Raises:
        UserError: it is a file of this machine.
    """
    if is_cluster(executor) and not uri.startswith(("http", "postgresql", "databricks")):
        raise UserError(
            f"The machines at RAY_ADDRESS cannot share a file of this one: set {what} to a server."
        )
