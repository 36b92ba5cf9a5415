"""Entry point ``evaluate``: a registered model on any dataset and subset.

Images are prepared as in training. Thresholds are those of training's validation images. No patient
whom the model has seen is evaluated on, be it in training or validation, without a label or by the
weights that it started from (`leakage.seen_by`): they are left out by their pseudonyms, which are
the same wherever a dataset lies, by whatever name it is read and however it is split now.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.command_line import parse
from sgc_experiments.config import AUTO, EvaluateConfig
from sgc_experiments.data import ImageDataset
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import evaluation_report, headline
from sgc_experiments.experiments.datasets import load_images, split_images
from sgc_experiments.experiments.fitted import FittedModel, load_fitted
from sgc_experiments.experiments.leakage import check_predictions_match, log_nameless, seen_by
from sgc_experiments.experiments.model_card import metric_table
from sgc_experiments.experiments.other_likelihood import use_likelihood
from sgc_experiments.experiments.other_prevalence import (
    log_interval,
    log_prevalence,
    wanted_prevalence,
)
from sgc_experiments.experiments.result_figures import log_curves
from sgc_experiments.experiments.scoring import (
    before_calibration,
    posterior_of,
    prediction_table,
    with_prevalence,
)
from sgc_experiments.past_runs import PastRun
from sgc_experiments.registered_models import run_that_fitted
from sgc_experiments.tracking import TrackedRun, start_run

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and evaluate."""
    evaluate(parse(EvaluateConfig, arguments))


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a registered model in one MLflow run.

    Raises:
        UserError: there is no such model or data, or no image that the model has not seen.
    """
    with start_run("evaluate", {"entry_point": "evaluate", "subset": config.subset}) as run:
        model = load_fitted(config.model_uri, config.device)
        config = resolve(config, model)
        run.set_tags(
            {
                "mlflow.runName": f"evaluate-{model.name}-on-{config.dataset}-{config.subset}",
                "model": model.name,
                "dataset": config.dataset,
                "model_uri": config.model_uri,
                "fitted_by": model.run_id,
            }
        )
        run.log_config(config.model_dump())
        run.log_environment()
        fitted_by = run_that_fitted(model.run_id, config.model_uri)
        validation, manifest = _of_training(fitted_by)
        seen = seen_by(fitted_by)
        log_nameless(run, seen, config.model_uri)
        dataset = load_images(config)
        rows, left_out = unseen_rows(config, model, dataset, seen.patients)
        _log_images(run, config, dataset, rows, left_out)
        if _another_likelihood(config, model):
            validation = use_likelihood(model, config.likelihood, dataset, manifest)
        test = prediction_table(
            model.classifier, np.asarray(dataset.images[rows]), dataset.table.iloc[rows]
        )
        uncalibrated = before_calibration(test, model.classifier)
        validation, test = _at_prevalence(run, config, model, validation, test)
        run.log_table(test.assign(subset=config.subset), "predictions")
        _report(run, config, model, validation, test, uncalibrated, left_out)


def _another_likelihood(config: EvaluateConfig, model: FittedModel) -> bool:
    classifier = model.classifier
    own = classifier.settings.likelihood if isinstance(classifier, ScoreBasedClassifier) else None
    return config.likelihood not in (AUTO, own)


def _at_prevalence(
    run: TrackedRun,
    config: EvaluateConfig,
    model: FittedModel,
    validation: pd.DataFrame,
    test: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables for the prevalence that is wanted, so that thresholds are chosen at it too."""
    if config.prevalence == "training":
        return validation, test
    classes, prior = model.classifier.classes, model.classifier.prior
    wanted = wanted_prevalence(config.prevalence, posterior_of(test, classes), prior)
    log_prevalence(run, classes, wanted)
    if config.prevalence == "estimate":
        log_interval(run, classes, test, prior, n_bootstrap=config.bootstrap, seed=config.seed)
    return (
        with_prevalence(validation, classes, prior, wanted),
        with_prevalence(test, classes, prior, wanted),
    )


def resolve(config: EvaluateConfig, model: FittedModel) -> EvaluateConfig:
    """Fill in what the model decides: the preparation, and for its own dataset the split.

    Raises:
        UserError: a parameter contradicts the model.
    """
    decided = {name: getattr(model.settings, name) for name in ("input", "image_size", "clahe")}
    given = config.model_fields_set
    for name, value in decided.items():
        if name in given and getattr(config, name) not in (AUTO, value):
            raise UserError(
                f"{name}={getattr(config, name)} contradicts the model, which was fitted with "
                f"{name}={value}: leave it out."
            )
    own = model.facts["dataset"]
    changes: dict[str, Any] = {"dataset": own if config.dataset == AUTO else config.dataset}
    if changes["dataset"] == own:
        changes |= {name: v for name, v in model.facts["data"].items() if name not in given}
    if changes["dataset"] == "table":
        if config.table is None:
            raise UserError(
                "The model was fitted on a table: give dataset=table and table=images.csv, or "
                "another dataset."
            )
        changes |= {
            "table": config.table.expanduser().absolute(), "classes": model.classifier.classes,
        }  # fmt: skip
    for name in ("cache_dir", "data_dir"):
        changes[name] = getattr(config, name).expanduser().absolute()
    return config.model_copy(update=changes | decided)


def unseen_rows(
    config: EvaluateConfig, model: FittedModel, dataset: ImageDataset, seen: frozenset[str]
) -> tuple[np.ndarray, int]:
    """Choose the images to evaluate on.

    Args:
        config: the resolved configuration.
        model: to evaluate.
        dataset: to choose from.
        seen: the patients whom the model has seen.

    Returns:
        Positions in the dataset, and how many of the subset's patients were left out because the
        model has seen them.

    Raises:
        UserError: other classes than the model's, or nobody is left.
    """
    if dataset.classes != model.classifier.classes:
        raise UserError(
            f"The model tells {', '.join(model.classifier.classes)} apart, but the images of "
            f"{dataset.name} are {', '.join(dataset.classes)}."
        )
    rows = np.arange(len(dataset.table))
    if config.subset != "all":
        rows = split_images(config, dataset).indices(config.subset, dataset.table)
    patients = dataset.table["patient"].iloc[rows]
    unseen = ~patients.isin(seen).to_numpy()
    left_out = patients[~unseen].nunique()
    if not unseen.any():
        raise UserError(
            f"subset={config.subset} has no patient whom the model has not seen in training or "
            "validation; evaluate on the test patients of its own split or on another dataset."
        )
    if left_out:
        logger.info("%d patient(s) whom the model has seen are left out", left_out)
    return rows[unseen], left_out


def _of_training(fitted_by: PastRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The validation predictions and the split of the run that fitted the model, checked."""
    predictions, manifest = fitted_by.table("predictions"), fitted_by.table("split")
    digest = fitted_by.tags["split_digest"]
    check_predictions_match(predictions, manifest, digest, fitted_by.name)
    validation = predictions[predictions["subset"] == "validation"].drop(columns="subset")
    return validation.reset_index(drop=True), manifest


def _log_images(
    run: TrackedRun, config: EvaluateConfig, dataset: ImageDataset, rows: np.ndarray, left_out: int
) -> None:
    used = dataset.table.iloc[rows]
    run.set_tags(
        {
            "data_digest": dataset.digest,
            "n_patients": used["patient"].nunique(),
            "n_patients_left_out": left_out,
            "n_quarantined": len(dataset.quarantine),
        }
    )
    run.log_table(dataset.quarantine, "quarantine")
    run.log_input(
        used[["image_id", "patient", "label"]],
        name=f"{dataset.name}-{config.subset}",
        digest=dataset.digest,
        context=config.subset,
    )


def _report(
    run: TrackedRun,
    config: EvaluateConfig,
    model: FittedModel,
    validation: pd.DataFrame,
    test: pd.DataFrame,
    uncalibrated: pd.DataFrame | None,
    left_out: int,
) -> None:
    report = evaluation_report(
        validation,
        test,
        n_bootstrap=config.bootstrap,
        seed=config.seed,
        class_prior=model.classifier.prior,
    )
    run.log_table(report, "test_metrics")
    run.log_metrics(headline(report, "test"))
    log_curves(
        run,
        model.name,
        validation,
        test,
        model.classifier.classes,
        uncalibrated=uncalibrated,
        n_bootstrap=config.bootstrap,
        seed=config.seed,
    )
    whole = report[(report["level"] == "image") & (report["group"] == "all")]
    lines = metric_table(whole)
    own = "the dataset that it was fitted on" if config.dataset == model.facts["dataset"] else (
        f"fitted on {model.facts['dataset']}"
    )  # fmt: skip
    text = [
        f"**{model.name}** ({config.model_uri}; {own}) on **{config.dataset}**, "
        f"subset {config.subset}: {test['patient'].nunique()} patients, {len(test)} images; "
        f"{left_out} patient(s) whom it has seen left out.",
        "",
        "*For research, not for diagnosis.*",
        "",
        *lines,
        "",
        _what_was_chosen(config),
    ]
    run.describe("\n".join(text))
    logger.info("%s", "\n".join(lines))


def _what_was_chosen(config: EvaluateConfig) -> str:
    chosen = "Thresholds and temperature are those of training"
    if config.likelihood != AUTO:
        chosen = (
            f"likelihood={config.likelihood}; thresholds and temperature are those of the "
            "validation patients of training"
        )
    if config.prevalence == "training":
        return f"{chosen}; so is the prevalence."
    return f"{chosen}; probabilities are for prevalence={config.prevalence}."
