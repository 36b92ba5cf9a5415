"""What the writers of synthetic releases share: an all-or-nothing folder, and all cores."""

from __future__ import annotations

import fcntl
import glob
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import cv2

from sgc_experiments.data.phantom.render import is_malignant
from sgc_experiments.errors import UserError
from sgc_experiments.interruption import end_with_the_caller
from sgc_experiments.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

TEST_EVERY = 4  # one patient in four is a test patient, of each class


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well, and vanishes if not.

    Raises:
        UserError: `out` exists and is not an empty folder.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose a new folder, or delete it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}-"
    with ExitStack() as held:
        with _locked(out.parent):
            _remove_abandoned(out.parent, prefix)
            staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
            held.enter_context(_locked(staging))
        try:
            yield staging
            staging.chmod(0o755)  # mkdtemp's folders are private
            os.replace(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder; the kernel frees it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process has it, and `wait` is false.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what killed processes have left; those at work have locked their folders."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), _locked(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


def in_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    progress: bool = False,
) -> list[Result]:
    """`[function(item) for item in items]` by several processes; the order is kept.

    Args:
        function: importable by name, since it travels to fresh processes.
        items: the arguments.
        workers: processes; 0 takes one per core, 1 stays in this process.
        progress: show a bar on stderr.
    """

    def shown(results: Iterator[Result]) -> list[Result]:
        done = []
        with progress_bar(total=len(items), title="phantom", unit="patient", shown=progress) as bar:
            for result in results:
                done.append(result)
                bar.update()
        return done

    workers = workers or len(os.sched_getaffinity(0))
    # A process takes about as long to start as a dozen patients take to write.
    workers = min(workers, 1 + len(items) // 16)
    if workers == 1:
        return shown(map(function, items))
    # Fresh processes: a fork of a parent whose libraries run threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            return shown(pool.map(function, items, chunksize=4))
        except BaseException:
            # Else the pool would finish everything that is queued before it lets go.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker() -> None:
    """One thread for the work; a signal is for the parent, which then stops its workers."""
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_the_caller, daemon=True).start()


def ranks(patients: int, *, seed: int) -> list[tuple[bool, int]]:
    """Per patient, its label and how many patients of that label come before it.

    Official splits and planted quirks go by this rank, so that both classes get theirs.

    Raises:
        UserError: fewer than one patient.
    """
    if patients < 1:
        raise UserError(f"patients={patients} must be at least 1")
    seen = {False: 0, True: 0}
    result = []
    for patient in range(patients):
        malignant = is_malignant(patient, seed=seed)
        result.append((malignant, seen[malignant]))
        seen[malignant] += 1
    return result


def is_test_rank(rank: int) -> bool:
    """Whether a patient of that rank is a test patient; ranks 0 to 2 are training patients."""
    return rank % TEST_EVERY == TEST_EVERY - 1
