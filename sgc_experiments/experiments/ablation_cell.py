"""One cell of the low-data ablation: one model, one training size, one seed, in one nested run.

A cell runs in a process of its own. It is known by its key: a digest of everything that decides on
its numbers. A finished cell is never fitted again, whichever ablation it belongs to; one that was
broken off on this machine goes on in its run, from its last checkpoint. On another machine it is
begun anew, since nothing tells there whether it is still at work.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from sgc_experiments.config import TrainConfig
from sgc_experiments.errors import Outage, UserError
from sgc_experiments.experiments.datasets import (
    Data,
    load_images_once,
    log_data,
    split_images,
)
from sgc_experiments.experiments.fitting import fit, log_model, measure, predict
from sgc_experiments.experiments.models import build_classifier
from sgc_experiments.file_lock import locked
from sgc_experiments.past_runs import PastRun, earlier_runs
from sgc_experiments.resumption import key_of
from sgc_experiments.tracking import Store, TrackedRun, end_run, start_run

UNFINISHED = ("RUNNING", "SCHEDULED", "KILLED")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """What is to be fitted.

    Attributes:
        model: as the tables call it; a variant has a name of its own.
        n_patients: training and validation patients.
        fraction: of all that the split has for both.
        seed: of the subset, the weights, the batches and the noise.
        prevalence: share of malignant patients that is asked for; None: as it is.
        config: the resolved configuration, with which ``train`` fits the same.
        key: a digest of all that decides on the numbers.
    """

    model: str
    n_patients: int
    fraction: float
    seed: int
    prevalence: float | None
    config: TrainConfig
    key: str

    @property
    def name(self) -> str:
        """How its run is listed."""
        skew = "" if self.prevalence is None else f"-p{self.prevalence:g}"
        return f"{self.model}-{self.config.dataset}-n{self.n_patients}{skew}-seed{self.seed}"

    def tags(self) -> dict[str, object]:
        """By which its run is found and read."""
        return {
            "entry_point": "cell",
            "model": self.model,
            "dataset": self.config.dataset,
            "n_patients": self.n_patients,
            "fraction": f"{self.fraction:.4g}",
            "seed": self.seed,
            "prevalence": "natural" if self.prevalence is None else f"{self.prevalence:g}",
            "cell_key": self.key,
        }


@dataclass(frozen=True)
class CellJob:
    """A cell, and where its run belongs.

    Attributes:
        cell: what to fit.
        store: of the runs.
        parent: the ablation's run.
        commit: of the code.
    """

    cell: Cell
    store: Store
    parent: str
    commit: str


@dataclass(frozen=True)
class CellResult:
    """What came of a cell.

    Attributes:
        run_id: its run; "" if there is none.
        seconds: of wall time.
        failure: why there is no result, or "".
    """

    run_id: str
    seconds: float
    failure: str = ""


def cell_key(model: str, config: TrainConfig, data_digest: str) -> str:
    """A digest of everything that decides on a cell's numbers."""
    return key_of(model, config.deciding("register_model"), data_digest)


def run_cell(job: CellJob) -> CellResult:
    """Fit and evaluate a cell in its run; what goes wrong is its result."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.monotonic()
    run_id = ""
    try:
        job.store.enter()
        lock = job.cell.config.cache_dir / "locks" / f"{job.cell.key}.lock"
        with locked(lock):
            done = [run for run in runs_of_cell(job) if run.status == "FINISHED"]
            if done:
                return CellResult(done[0].run_id, time.monotonic() - started)
            with start_run(
                job.cell.name,
                job.cell.tags() | {"commit": job.commit},
                config=job.cell.config,
                parent=job.parent,
                system_metrics=False,
            ) as run:
                run_id = run.run_id
                run.show_below(job.parent)  # also if another ablation has begun it
                run.log_config(job.cell.config.model_dump())
                run.log_environment()
                # Of the ablation, by which the cell is found, even if files are edited meanwhile.
                run.set_tags({"commit": job.commit})
                _fit(run, job.cell)
    except Outage as error:
        if run_id:  # no failure of the cell: the same command goes on with it
            with suppress(Exception):
                end_run(run_id, "KILLED", {})
        return CellResult(run_id, time.monotonic() - started, str(error))
    except UserError as error:
        return CellResult(run_id, time.monotonic() - started, str(error))
    except Exception as error:
        # A defect, or a machine that gave out, in one cell is no reason to lose the others. The
        # text of a foreign exception may quote data and stays in this process's log.
        logger.exception("%s failed", job.cell.name)
        return CellResult(run_id, time.monotonic() - started, f"internal {type(error).__name__}")
    return CellResult(run_id, time.monotonic() - started)


def runs_of_cell(job: CellJob) -> list[PastRun]:
    """The cell's runs with this version of the code, however they ended, oldest first."""
    return earlier_runs(
        job.store.experiment_id, tags={"cell_key": job.cell.key, "commit": job.commit}
    )


def fail_dead_cell(job: CellJob, cause: str) -> CellResult:
    """End the run of a cell whose process died."""
    reason = f"the cell's process died ({cause}); there may not have been enough memory"
    open_runs = [
        run.run_id
        for run in runs_of_cell(job)
        # Another ablation's may be alive.
        if run.status in UNFINISHED and run.tags["mlflow.parentRunId"] == job.parent
    ]
    for run_id in open_runs:
        end_run(run_id, "FAILED", {"failure_reason": reason})
    return CellResult(open_runs[-1] if open_runs else "", float("nan"), reason)


def _fit(run: TrackedRun, cell: Cell) -> None:
    """The steps of ``train``, less the figures, which the logged predictions can be drawn from."""
    dataset = load_images_once(cell.config)
    data = Data(dataset, split_images(cell.config, dataset))
    log_data(run, data)
    classifier = build_classifier(cell.config, dataset.classes)
    fit(run, cell.config, data, classifier, progress=False)
    predictions = predict(run, data, classifier)
    measure(run, cell.config, predictions, prior=data.prevalence("train"))
    run.set_tags({"model_uri": log_model(run, cell.config, data, classifier)})
