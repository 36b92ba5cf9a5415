"""Jobs on a Ray cluster, with the semantics of `worker_processes.run_in_processes`.

With RAY_ADDRESS the cluster is that one; else one is made of this machine, on loopback, and is gone
at the end. Ray finds room for each job by the cores and GPUs that it asks for. A job whose worker
dies is begun once more (a cell goes on from its checkpoint where it finds it); the second death is
its result. Nothing else is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

from sgc_experiments.errors import Outage, UserError
from sgc_experiments.experiments.worker_processes import WorkerDied
from sgc_experiments.provenance import COMMIT_VARIABLE, PROJECT_DIR, commit

_PACKAGES = ("sgc_experiments", "baselines")
_RETRIES = 1
_SECONDS_TO_STOP = 20.0

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_on_ray(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, threads: int, gpus: int = 0
) -> Generator[tuple[int, Result | WorkerDied]]:
    """Apply a function to every job, each in a task of a Ray cluster.

    Args:
        work: an importable function that raises nothing.
        jobs: its arguments, picklable; begun in this order.
        workers: jobs at work at once; 0: as many as the cluster has room for.
        threads: cores that each asks for.
        gpus: GPUs that each asks for.

    Yields:
        (position in ``jobs``, result), in order of completion.

    Raises:
        UserError: Ray is not installed, or there is no cluster at RAY_ADDRESS.
    """
    if not jobs:
        return
    ray = _import_ray()
    with _cluster(ray, cores=threads * (workers or len(jobs))):
        # Ray sets OMP_NUM_THREADS to the cores that a task asks for.
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=_RETRIES)(work)
        waiting = list(range(len(jobs)))
        at_work: dict[Any, int] = {}
        try:
            while waiting or at_work:
                while waiting and len(at_work) < (workers or len(jobs)):
                    position = waiting.pop(0)
                    at_work[task.remote(jobs[position])] = position
                (done, *_), _ = ray.wait(list(at_work))
                yield at_work.pop(done), _result(ray, done)
        finally:
            _stop(ray, list(at_work))


def _result(ray: ModuleType, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError:  # of the work itself, which is a defect
        raise
    except ray.exceptions.RayError as error:
        return WorkerDied(type(error).__name__)


def _stop(ray: ModuleType, at_work: list[Any]) -> None:
    """Interrupt what is at work, and give it time to say so in its run."""
    for reference in at_work:
        ray.cancel(reference, force=False)
    if at_work:
        ray.wait(at_work, num_returns=len(at_work), timeout=_SECONDS_TO_STOP)


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError:
        raise UserError(
            'executor=ray needs Ray: pip install -e ".[ray]" in the project\'s folder, or use '
            "executor=local."
        ) from None
    return ray


@contextlib.contextmanager
def _cluster(ray: ModuleType, *, cores: int) -> Iterator[None]:
    """Be connected to a cluster for the block.

    Raises:
        UserError: it does not answer.
        Outage: it cannot be started here.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        options: dict[str, Any] = {"address": address, "runtime_env": _shipped()}
    else:
        options = {
            "address": "local", "num_cpus": cores, "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**options, logging_level="warning")
    except Exception as error:  # Ray has no type of its own for it
        kind = type(error).__name__
        if not address:
            raise Outage(
                f"Ray could not start on this machine ({kind}), which may be busy: try again, or "
                "use executor=local."
            ) from None
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({kind}): start one with `ray start "
            "--head`, set RAY_AUTH_MODE=token if it asks for a token, or unset RAY_ADDRESS to use "
            "this machine."
        ) from None
    for number, handler in handlers.items():  # Ray would end the program without its runs' end
        signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _shipped() -> dict[str, object]:
    """The source of this checkout for the machines of a cluster; an installed package is there."""
    if not (PROJECT_DIR / "pyproject.toml").exists():
        return {}
    others = [path.name for path in PROJECT_DIR.iterdir() if path.name not in _PACKAGES]
    return {
        "working_dir": str(PROJECT_DIR),
        "excludes": [f"/{name}" for name in others],
        "env_vars": {COMMIT_VARIABLE: commit()},
    }
