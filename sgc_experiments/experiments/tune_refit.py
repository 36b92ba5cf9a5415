"""The end of ``tune``: the best configuration and the defaults, refitted and compared on test.

Both are fitted with the same seeds on the same patients, each in a nested run, and the models of
the best configuration are registered. Until here nothing has seen a test image.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from sgc_experiments.config import TrainConfig, TuneConfig
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.datasets import Data
from sgc_experiments.experiments.fitting import fingerprint, fit_and_publish, register
from sgc_experiments.experiments.train import run_name, run_tags
from sgc_experiments.experiments.tune_study import TuningStudy
from sgc_experiments.learning_curves import Cell, learning_curves
from sgc_experiments.past_runs import PastRun, finished_runs, open_run, running
from sgc_experiments.predictions import class_names
from sgc_experiments.provenance import commit
from sgc_experiments.tracked_run import DESCRIPTION
from sgc_experiments.tracking import LOST, TrackedRun, end_lost_run, start_run

TUNED, DEFAULTS = "tuned", "defaults"
_METRICS = ("auc", "average_precision", "brier")
_METRICS_OF_MORE_CLASSES = ("macro_auc",)
_POLL_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Refit(NamedTuple):
    """One fit on train that is evaluated on test."""

    role: str
    config: TrainConfig
    tags: dict[str, str]


def refits(config: TuneConfig, best: TrainConfig, data: Data, study: str) -> list[Refit]:
    """The best configuration and the defaults with every seed; the best alone if they agree."""
    roles = {TUNED: best}
    if config.defaults() != best:
        roles[DEFAULTS] = config.defaults().model_copy(update={"register_model": False})
    planned = []
    for seed in range(config.seed, config.seed + config.refit_seeds):
        for role, of_role in roles.items():
            seeded = of_role.model_copy(update={"seed": seed})
            key = f"{role}-{fingerprint(seeded, data)}-{commit()}"
            planned.append(Refit(role, seeded, {"study": study, "refit": role, "refit_key": key}))
    return planned


def refit_all(
    planned: list[Refit], study: TuningStudy, data: Data, *, parent: str
) -> list[PastRun]:
    """Fit what is not fitted yet, sharing the work with other processes; the runs, in order.

    They are made below the study's run, ``parent``.
    """
    waiting = False
    while True:
        finished: list[PastRun] = []
        for number, refit in enumerate(planned, start=1):
            past = finished_runs(tags=refit.tags)
            if not past:
                with study.claims.try_to_hold(f"refit {refit.tags['refit_key']}"[:200]) as ours:
                    # Another process may have finished it just before.
                    if ours and not finished_runs(tags=refit.tags):
                        logger.info("refit %d of %d: %s", number, len(planned), refit.role)
                        _fit(refit, data, parent)
                past = finished_runs(tags=refit.tags)
            finished += past[:1]
        if len(finished) == len(planned):
            return finished
        if not waiting:
            logger.info("waiting for the refits of other processes")
        waiting = True
        time.sleep(_POLL_SECONDS)


def _fit(refit: Refit, data: Data, parent: str) -> None:
    for run_id in running(refit.tags):  # of a process that died, or the claim would not be ours
        end_lost_run(run_id, {"failure_reason": LOST})
    tags = run_tags(refit.config) | {"entry_point": "refit"} | refit.tags
    name = f"{refit.role}-{run_name(refit.config)}"
    with start_run(name, tags, config=refit.config, nested=True, parent=parent) as run:
        run.log_config(refit.config.model_dump())
        run.log_environment()
        fit_and_publish(run, refit.config, data)


def register_refits(planned: Sequence[Refit], runs: Sequence[PastRun], data: Data) -> None:
    """Register the tuned models that were fitted by a command with ``register_model=false``.

    Raises:
        UserError: the model of a finished refit was deleted.
    """
    for refit, past in zip(planned, runs, strict=True):
        run = TrackedRun(past.run_id, open_run().info.experiment_id)
        if not refit.config.register_model or run.is_registered():
            continue
        uri = run.find_model()
        if uri is None:
            raise UserError(
                f"The run {past.name} ({past.run_id}) has no model to register any more; delete "
                "the run, and the same command fits it again."
            )
        register(run, uri, refit.config, data, past.metrics, card=past.tags[DESCRIPTION])


def gain(
    planned: list[Refit], runs: list[PastRun], *, n_bootstrap: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the tuned configuration and the defaults reach on test, and their paired difference.

    Means over the seeds; intervals over the test patients and the seeds, which both share (with one
    seed, over the patients alone).

    Returns:
        As `LearningCurves.table` and `LearningCurves.differences`; the second is empty if the best
        configuration is that of the defaults.
    """
    cells = []
    for refit, run in zip(planned, runs, strict=True):
        predictions = run.table("predictions")
        test = predictions[predictions["subset"] == "test"].drop(columns="subset")
        size = float(run.tags["n_train_patients"])
        cells.append(Cell(refit.role, size, refit.config.seed, test.reset_index(drop=True)))
    results, differences = [], []
    two = not class_names(cells[0].predictions)
    for metric in _METRICS if two else _METRICS_OF_MORE_CLASSES:
        curves = learning_curves(cells, metric=metric, n_bootstrap=n_bootstrap, seed=seed)
        results.append(curves.table())
        if DEFAULTS in curves.models:
            differences.append(curves.differences(DEFAULTS))
    return pd.concat(results), pd.concat(differences) if differences else pd.DataFrame()
