"""The grid of the low-data ablation: which cells there are, and how they come to be finished."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgc_experiments.config import FewshotConfig, resolve_defaults
from sgc_experiments.data import ImageDataset
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.ablation_cell import (
    Cell,
    CellJob,
    CellResult,
    cell_key,
    fail_dead_cell,
    run_cell,
)
from sgc_experiments.experiments.datasets import split_images
from sgc_experiments.experiments.executors import execute
from sgc_experiments.experiments.worker_processes import WorkerDied
from sgc_experiments.past_runs import PastRun, earlier_runs, read_run
from sgc_experiments.provenance import commit
from sgc_experiments.tracking import Store, TrackedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A cell that has a result."""

    cell: Cell
    run: PastRun


@dataclass(frozen=True)
class Failed:
    """A cell that has none, and why."""

    cell: Cell
    reason: str
    run_id: str


def plan_cells(config: FewshotConfig, dataset: ImageDataset, *, gpu: bool) -> list[Cell]:
    """All cells of the grid, in the order in which they are fitted: a whole curve seed by seed.

    Raises:
        UserError: a size that the patients do not allow, or no cell is left.
    """
    manifest = split_images(config, dataset).manifest
    everyone = manifest.loc[manifest["subset"] != "test", "patient"].nunique()
    cells: dict[str, Cell] = {}
    for seed in config.seeds:
        for prevalence in config.prevalence or (None,):
            for size in config.sizes:
                wanted = _number(size, everyone)
                for model in config.models:
                    train_config = resolve_defaults(
                        config.of(model, n_patients=wanted, seed=seed, prevalence=prevalence),
                        gpu=gpu,
                    )
                    subset = split_images(train_config, dataset).manifest
                    n = subset.loc[subset["subset"] != "test", "patient"].nunique()
                    if n == everyone and train_config.unlabelled:
                        continue  # nobody is left to be unlabelled
                    train_config = train_config.model_copy(update={"n_patients": n})
                    key = cell_key(model, train_config, dataset.digest)
                    cells[key] = Cell(model, n, n / everyone, seed, prevalence, train_config, key)
    if not cells:
        raise UserError(
            "The grid has no cell, since sizes leaves no patient to learn from without a label: "
            "add a smaller one, or a model other than sgc_unlabelled."
        )
    return list(cells.values())


def _number(size: float | Literal["all"], everyone: int) -> int | Literal["all"]:
    """A size as a number of patients; a fraction is at least 4, which both classes need."""
    if isinstance(size, float):
        return max(4, round(size * everyone))
    return size


def finish_cells(
    run: TrackedRun,
    cells: Sequence[Cell],
    *,
    executor: str,
    workers: int,
    threads: int,
    gpu: bool,
    retry_failed: bool,
) -> tuple[list[Finished], list[Failed]]:
    """Take over what is finished, fit what is not, and say what cannot be.

    Args:
        run: the ablation's.
        cells: of its grid.
        executor: where they are fitted, see `executors.execute`.
        workers: cells at work at once; 0: as many as a cluster has room for.
        threads: that each may use.
        gpu: whether each needs a GPU.
        retry_failed: whether to fit again what failed before.
    """
    store, version = Store.of(run), commit()
    done, before = (
        _past_runs(store, version),
        {} if retry_failed else _past_failures(store, version),
    )
    failures = {cell.key: before[cell.key] for cell in cells if cell.key in before.keys() - done}
    jobs = [
        CellJob(cell, store, run.run_id, version)
        for cell in cells
        if cell.key not in done and cell.key not in failures
    ]
    logger.info(
        "%d cells: %d finished before, %d failed before, %d to fit, %d at once",
        len(cells), len(cells) - len(failures) - len(jobs), len(failures), len(jobs),
        workers or len(jobs),
    )  # fmt: skip
    results = execute(executor, run_cell, jobs, workers=workers, threads=threads, gpu=gpu)
    for job, result in _named(jobs, results, workers):
        if result.failure:
            failures[job.cell.key] = result.run_id, result.failure
        else:
            done[job.cell.key] = read_run(result.run_id)
    return (
        [Finished(cell, done[cell.key]) for cell in cells if cell.key in done],
        [
            Failed(cell, reason=failures[cell.key][1], run_id=failures[cell.key][0])
            for cell in cells
            if cell.key not in done
        ],
    )


def _past_runs(store: Store, version: str) -> dict[str, PastRun]:
    """The finished runs of cells by key."""
    return {run.tags["cell_key"]: run for run in _cell_runs(store, version, "FINISHED")}


def _past_failures(store: Store, version: str) -> dict[str, tuple[str, str]]:
    """Run and reason of the cells that failed, by key; the latest failure of each."""
    return {
        run.tags["cell_key"]: (run.run_id, run.tags.get("failure_reason", "unknown"))
        for run in _cell_runs(store, version, "FAILED")
    }


def _cell_runs(store: Store, version: str, status: str) -> list[PastRun]:
    runs = earlier_runs(store.experiment_id, tags={"entry_point": "cell", "commit": version})
    return [run for run in runs if run.status == status]


def _named(
    jobs: Sequence[CellJob], results: Generator[tuple[int, CellResult | WorkerDied]], workers: int
) -> Iterator[tuple[CellJob, CellResult]]:
    """Cells as they are finished, with a line each on how long the others will take."""
    seconds: dict[str, list[float]] = {}
    to_do = [job.cell.model for job in jobs]
    started = time.monotonic()
    with contextlib.closing(results):
        for position, result in results:
            job = jobs[position]
            if isinstance(result, WorkerDied):
                result = fail_dead_cell(job, result.cause)
            to_do.remove(job.cell.model)
            if result.failure:
                logger.warning("%s failed: %s", job.cell.name, result.failure)
            else:
                seconds.setdefault(job.cell.model, []).append(result.seconds)
                logger.info("%s finished in %.0f s", job.cell.name, result.seconds)
            if to_do and seconds:
                spent = sum(sum(of_model) for of_model in seconds.values())
                at_once = workers or max(1, round(spent / (time.monotonic() - started)))
                logger.info(
                    "%d of %d cells done, about %s to go",
                    len(jobs) - len(to_do), len(jobs), _remaining(to_do, seconds, at_once),
                )  # fmt: skip
            yield job, result


def _remaining(to_do: Sequence[str], seconds: Mapping[str, Sequence[float]], workers: int) -> str:
    """How long models will take that took so long before; a new one as long as the mean."""
    mean = {model: float(np.mean(spent)) for model, spent in seconds.items()}
    overall = float(np.mean([one for spent in seconds.values() for one in spent]))
    left = sum(mean.get(model, overall) for model in to_do) / workers
    return str(datetime.timedelta(seconds=round(left)))
