"""One trial of ``tune``, in a nested run: fitted on train, judged on validation, test unseen.

A pruned trial's run is FINISHED, as it came to its proper end, with the tag ``trial_state=pruned``;
a diverged one counts as pruned. The run of a trial whose process died is KILLED, with
``trial_state=lost``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import optuna
import torch

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.config import TrainConfig, TuneConfig
from sgc_experiments.config.search_space import choose
from sgc_experiments.errors import Outage, UserError
from sgc_experiments.evaluation import evaluation_report, headline
from sgc_experiments.evidence import own_bits_per_dim
from sgc_experiments.experiments.datasets import Data, log_data
from sgc_experiments.experiments.fitting import fit
from sgc_experiments.experiments.models import build_classifier
from sgc_experiments.experiments.scoring import prediction_table
from sgc_experiments.experiments.tune_study import TuningStudy
from sgc_experiments.metrics import logged_auc
from sgc_experiments.past_runs import running
from sgc_experiments.tracking import LOST, TrackedRun, end_lost_run, is_there, start_run

_SEEN = ("train", "validation")


def run_trial(
    trial: optuna.Trial, *, config: TuneConfig, study: TuningStudy, data: Data, parent: str
) -> Sequence[float]:
    """Fit and judge one point of the space, in a run below that of the study, ``parent``.

    Returns:
        The values that the study maximises.

    Raises:
        TrialPruned: the trial is hopeless, diverged, or no valid configuration.
    """
    point = choose(config.space(), partial(study.suggest, trial))
    repeats = study.repeats(trial)
    lost_run = "" if repeats is None else trial.user_attrs.get("run_id", "")
    tags = {
        "entry_point": "trial",
        "study": study.name,
        "trial": trial.number,
        "trial_state": "running",
        "model": "sgc",
        "dataset": config.dataset,
    } | ({} if repeats is None else {"repeats_trial": repeats})
    first = trial.number if repeats is None else repeats
    checkpoints = config.cache_dir / "checkpoints" / f"{study.name}-trial{first}"
    pruned = ""
    with start_run(f"trial-{trial.number:03d}", tags, nested=True, parent=parent) as run:
        trial.set_user_attr("run_id", run.run_id)
        try:
            of_trial = trial_config(config, point)
            run.log_config(of_trial.model_dump())
            run.log_environment()
            log_data(run, data, _SEEN)
            if lost_run and is_there(lost_run):  # what is trained already is not reported again
                run.take_over_curves(lost_run)
            on_step = _reporter(run, trial, prunes=config.objective != "both")
            values = _judge(
                run, of_trial, data.without_test(), checkpoints=checkpoints, on_step=on_step
            )
            for name, value in values.items():
                trial.set_user_attr(name, value)
        except Outage:  # says nothing of the point: the study stops, and goes on later
            raise
        except (optuna.TrialPruned, UserError) as error:
            pruned = str(error)
        except torch.OutOfMemoryError:
            pruned = "the device has too little memory for it"
        run.set_tags({"trial_state": "pruned" if pruned else "complete"})
        if pruned:
            run.set_tags({"pruned_because": pruned})
    shutil.rmtree(checkpoints, ignore_errors=True)  # a trial that is lost is repeated from them
    if pruned:
        raise optuna.TrialPruned(pruned)
    auc, bits = values["val_auc"], -values["val_bits_per_dim"]
    return {"auc": [auc], "bits_per_dim": [bits], "both": [auc, bits]}[config.objective]


def trial_config(config: TuneConfig, point: dict[str, float | int | str]) -> TrainConfig:
    """The configuration of a trial.

    Raises:
        UserError: the point's values contradict each other.
    """
    shorter = {"budget": config.trial_budget, "register_model": False}
    return config.with_point(point).model_copy(update=shorter)


def _reporter(
    run: TrackedRun, trial: optuna.Trial, *, prunes: bool
) -> Callable[[dict[str, float], int], None]:
    """What logs a training's metrics, and stops it where the study's pruner says so."""

    def on_step(metrics: dict[str, float], step: int) -> None:
        run.log_metrics(metrics, step)
        auc = metrics.get("validation_auc", math.nan)
        if prunes and math.isfinite(auc):
            trial.report(auc, step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"validation AUC {auc:.3f} at step {step}")

    return on_step


def _judge(
    run: TrackedRun,
    config: TrainConfig,
    data: Data,
    *,
    checkpoints: Path,
    on_step: Callable[[dict[str, float], int], None],
) -> dict[str, float]:
    """Fit, and evaluate on validation: `val_auc` (macro of more classes), `val_bits_per_dim`."""
    # The only model with a search space.
    classifier = cast(ScoreBasedClassifier, build_classifier(config, data.dataset.classes))
    fit(run, config, data, classifier, on_step=on_step, checkpoints=checkpoints)
    images, labels = data.image_set("validation")
    table = prediction_table(classifier, images, data.dataset.table.iloc[data.rows("validation")])
    run.log_table(table.assign(subset="validation"), "predictions")
    report = evaluation_report(
        table,
        table,
        n_bootstrap=config.bootstrap,
        seed=config.seed,
        class_prior=data.prevalence("train"),
    )
    metrics = headline(report[report["level"] == "image"], "val")
    bits = own_bits_per_dim(
        classifier.network,
        images,
        labels,
        log_snr_min=classifier.settings.log_snr_min,
        log_snr_max=classifier.settings.log_snr_max,
    )
    metrics["val_bits_per_dim"] = float(bits.mean())
    run.log_metrics(metrics)
    auc = logged_auc(metrics, "val_auc")
    if auc is None:
        raise UserError("The validation images are all of one class, so that there is no AUC.")
    return {"val_auc": auc, "val_bits_per_dim": metrics["val_bits_per_dim"]}


def end_lost_trial(trial: optuna.trial.FrozenTrial, *, study: str) -> None:
    """End the run of a trial whose process died, be it after all but telling the study."""
    begun = set(running({"study": study, "trial": str(trial.number)}))
    if told := trial.user_attrs.get("run_id"):
        begun.add(told)
    for run_id in begun:
        end_lost_run(run_id, {"trial_state": "lost", "failure_reason": LOST})
