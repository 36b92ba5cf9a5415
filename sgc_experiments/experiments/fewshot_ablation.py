"""Entry point ``fewshot_ablation``: models on ever fewer patients, and how their accuracy falls.

Every cell of models × sizes × seeds (× prevalence) is a nested run, fitted in a process of its own
(``ablation_cell.py``). The same command goes on where it was broken off: it takes up its unfinished
run and every finished cell.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from sgc_experiments.command_line import parse
from sgc_experiments.config import FewshotConfig, resolve_defaults
from sgc_experiments.data import ImageDataset
from sgc_experiments.data.decode_pool import available_cores
from sgc_experiments.errors import UserError
from sgc_experiments.experiments import ablation_report
from sgc_experiments.experiments.ablation_cell import UNFINISHED
from sgc_experiments.experiments.ablation_grid import finish_cells, plan_cells
from sgc_experiments.experiments.datasets import load_images, split_images
from sgc_experiments.experiments.executors import check_shared, is_cluster
from sgc_experiments.experiments.models import check_model
from sgc_experiments.experiments.starting_weights import seen_by_registered
from sgc_experiments.experiments.train import announce
from sgc_experiments.file_lock import locked
from sgc_experiments.past_runs import earlier_runs
from sgc_experiments.provenance import commit
from sgc_experiments.registered_models import pinned
from sgc_experiments.resumption import cache_identity, key_of
from sgc_experiments.tracking import (
    LOST,
    Store,
    TrackedRun,
    end_lost_run,
    end_run,
    move_run,
    start_run,
)
from sgc_experiments.training_settings import choose_device

# What may differ when an ablation is taken up again: it decides on no number.
_HOW = {"cache_dir", "config", "workers", "retry_failed", "executor"}

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and run the ablation."""
    fewshot_ablation(parse(FewshotConfig, arguments))


def fewshot_ablation(config: FewshotConfig) -> None:
    """Fit the grid of ``config`` and report on it in one MLflow run.

    Raises:
        UserError: the data or a parameter does not allow it, or no cell has a result; the run is
            FAILED with the reason.
    """
    gpu = choose_device(config.device).type == "cuda"
    config = resolve_defaults(config, gpu=gpu)
    key = _ablation_key(config)
    refusal = "Another process is at work on the same ablation; wait for it, or change a parameter."
    with locked(config.cache_dir / "locks" / f"ablation-{key}.lock", refusal=refusal):
        earlier = _unfinished(key)
        # `mlflow run` has opened a run of its own, which then takes the place of the earlier one.
        resumed = earlier[-1] if earlier and "MLFLOW_RUN_ID" not in os.environ else ""
        name = f"fewshot-{config.dataset}-{config.input}{config.image_size}-{config.preset}"
        tags = {"entry_point": config.entry_point, "dataset": config.dataset, "ablation_key": key}
        with start_run(name, tags | {"commit": commit()}, run_id=resumed) as run:
            for other in earlier:
                if other != run.run_id:
                    _replace(other, run)
            run.log_config(config.model_dump(exclude=_HOW))
            run.log_environment()
            check_shared(config.executor, Store.of(run).tracking_uri, "MLFLOW_TRACKING_URI")
            _fill_the_grid(run, config, gpu=gpu)


def _fill_the_grid(run: TrackedRun, config: FewshotConfig, *, gpu: bool) -> None:
    announce(", ".join(config.models), config, gpu=gpu)
    for model in config.models:
        check_model(config.of(model, n_patients="all", seed=0, prevalence=None).model)
    if config.init_from:  # an alias can move
        config = config.model_copy(update={"init_from": pinned(config.init_from)})
    dataset = load_images(config)
    if config.init_from:
        _check_start(config.init_from, dataset)
    full = split_images(config, dataset)
    run.set_tags({"data_digest": dataset.digest, "split_digest": full.digest})
    cells = plan_cells(config, dataset, gpu=gpu)
    cores = available_cores()
    workers = min(config.workers or (1 if gpu else cores), len(cells))
    threads = max(1, cores // workers)
    if is_cluster(config.executor):
        workers, threads = config.workers, 1 if not gpu else 4
    finished, failed = finish_cells(
        run,
        cells,
        executor=config.executor,
        workers=workers,
        threads=threads,
        gpu=gpu,
        retry_failed=config.retry_failed,
    )
    _end_lost_cells(run)
    run.set_tags({"n_cells": len(cells), "n_failed_cells": len(failed)})
    if not finished:
        raise UserError(
            f"No cell of the grid has a result; the first failed because {failed[0].reason}"
        )
    ablation_report.publish(run, config, finished, failed, split_digest=full.digest)


def _check_start(uri: str, dataset: ImageDataset) -> None:
    """Refuse weights that know the dataset: a cell is to know its own few patients of it alone."""
    if known := seen_by_registered(uri).patients & set(dataset.table["patient"]):
        raise UserError(
            f"init_from={uri} has seen {len(known)} patient(s) of {dataset.name}, so that no cell "
            "would show what its number of patients is worth: start from a model of other patients."
        )


def _ablation_key(config: FewshotConfig) -> str:
    """A digest of the ablation, and of the cache: on another machine, it may still be at work."""
    relevant = config.model_dump(mode="json", exclude=_HOW)
    return key_of(relevant, cache_identity(config.cache_dir))


def _unfinished(key: str) -> list[str]:
    """Runs of the same ablation that were broken off on this machine, oldest first."""
    tags = {"ablation_key": key, "commit": commit()}
    runs = earlier_runs(None, tags=tags)
    return [
        run.run_id for run in runs if run.status in UNFINISHED and "continued_by" not in run.tags
    ]


def _replace(earlier: str, run: TrackedRun) -> None:
    """Move the cells of a run that was broken off below the one that goes on with them."""
    for cell in earlier_runs(run.experiment_id, tags={"mlflow.parentRunId": earlier}):
        move_run(cell.run_id, run.run_id)
    end_run(earlier, "KILLED", {"continued_by": run.run_id})


def _end_lost_cells(run: TrackedRun) -> None:
    """End the runs of cells that were broken off and then fitted on another machine."""
    for cell in earlier_runs(run.experiment_id, tags={"mlflow.parentRunId": run.run_id}):
        if cell.status == "RUNNING":
            end_lost_run(cell.run_id, {"failure_reason": LOST})
