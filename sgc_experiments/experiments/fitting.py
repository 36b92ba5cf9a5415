"""From images and a split to a fitted, evaluated and registered classifier, in one MLflow run.

The same steps for every model: nothing here knows which one it is, but for the samples and
explanations that a generative model can draw.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from sgc_experiments import figures, ranks
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.config import TrainConfig, settled
from sgc_experiments.data import CLASSES
from sgc_experiments.evaluation import evaluation_report, headline
from sgc_experiments.experiments.datasets import SPLIT_PARAMETERS, Data, log_data
from sgc_experiments.experiments.explanations import explanation_sheet
from sgc_experiments.experiments.model_card import metric_table, model_card
from sgc_experiments.experiments.models import build_classifier, training_settings
from sgc_experiments.experiments.result_figures import decide, log_curves
from sgc_experiments.experiments.scoring import answer, before_calibration, prediction_table
from sgc_experiments.experiments.shared_work import (
    SharedFit,
    SharedPrediction,
    training_images,
    unlabelled_images,
)
from sgc_experiments.experiments.starting_weights import start_from_registered
from sgc_experiments.experiments.team import give
from sgc_experiments.experiments.unlabelled import find_unlabelled, log_unlabelled
from sgc_experiments.metrics import logged_auc
from sgc_experiments.protocol import Classifier, predict_together
from sgc_experiments.provenance import commit
from sgc_experiments.registered_models import pinned
from sgc_experiments.resumption import key_of
from sgc_experiments.tracking import TrackedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES_PER_CLASS = 6
_VERSION_METRICS = ("val_auc", "test_auc", "test_auc_low", "test_auc_high")
# Which images there are and who is in which subset: an evaluation of the model repeats it.
DATA_PARAMETERS = {
    "birads3",
    "abnormality",
    "on_leak",
    "phantom_patients",
    "phantom_seed",
    "difficulty",
    *SPLIT_PARAMETERS,
}
# What changes neither the training nor its predictions.
_BESIDE_TRAINING = ("checkpoint_every", "bootstrap", "register_model", "folds", "repeats")

logger = logging.getLogger(__name__)


def fit_and_publish(run: TrackedRun, config: TrainConfig, data: Data) -> None:
    """Fit the model of a resolved configuration, evaluate it on test and register it.

    Raises:
        UserError: the data or a parameter does not allow it.
    """
    log_data(run, data)
    classifier = build_classifier(config, data.dataset.classes)
    fit(run, config, data, classifier)
    predictions = predict(run, data, classifier)
    report = evaluate(
        run,
        config,
        predictions,
        prior=data.prevalence("train"),
        classes=data.dataset.classes,
        uncalibrated=before_calibration(predictions.test, classifier),
    )
    if isinstance(classifier, ScoreBasedClassifier):
        run.log_figure(_sample_sheet(data, classifier, config.seed), "samples")
        if len(classifier.classes) == 2 and config.likelihood == "elbo":
            called = decide(*predictions)
            sheet = explanation_sheet(data, classifier, predictions.test, called, seed=config.seed)
            run.log_figure(sheet, "explanations")
    publish(run, config, data, classifier, report)


def fit(
    run: TrackedRun,
    config: TrainConfig,
    data: Data,
    classifier: Classifier,
    *,
    on_step: Callable[[dict[str, float], int], None] | None = None,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> None:
    """Train, with live metrics and checkpoints; the same command resumes a killed training.

    Args:
        run: where to log.
        config: the resolved configuration.
        data: the images and their split.
        classifier: to be fitted.
        on_step: called with metrics and the step, in place of logging them.
        checkpoints: where they are kept, in place of the run's own folder; the caller deletes it.
        progress: whether to show it.
    """
    home = checkpoints or run.folder
    unlabelled = unlabelled_images(config, data, classifier)
    if unlabelled:
        log_unlabelled(run, unlabelled)
    if config.init_from and isinstance(classifier, ScoreBasedClassifier):
        start_from_registered(run, config.init_from, classifier, data.split.manifest)
    settings = replace(training_settings(config), progress=progress)
    run.set_tags({"processes": ranks.count()})
    give(SharedFit(config, data.split, classifier, settings))
    result = classifier.fit(
        training_images(data, unlabelled),
        data.image_set("validation"),
        settings=settings,
        checkpoint_dir=home / fingerprint(config, data) if home else None,
        on_step=on_step or run.log_metrics,
    )
    run.log_metrics(
        {
            "training_seconds": result.seconds,
            "training_steps": result.steps,
            "training_images": result.images,
            "best_step": result.best_step,
        }
    )
    history = pd.DataFrame(result.history)
    run.log_table(history, "training_history")
    drawn = figures.training_curves(history, best_step=result.best_step)
    run.log_figure(drawn, "training_curves")


def fingerprint(config: TrainConfig, data: Data) -> str:
    """A digest of everything that changes the training, and so the predictions."""
    relevant = config.deciding(*_BESIDE_TRAINING)
    if unlabelled := find_unlabelled(config, data):
        relevant["unlabelled"] = unlabelled.digest
    if config.init_from:  # an alias can move
        relevant["init_from"] = pinned(config.init_from)
    return key_of(relevant, commit(), data.dataset.digest, data.split.digest)


class Predictions(NamedTuple):
    """Tables of ``predictions.py``; with a column ``fold`` after a cross-validation."""

    validation: pd.DataFrame
    test: pd.DataFrame


def predict(run: TrackedRun, data: Data, classifier: Classifier) -> Predictions:
    """Predict validation and test, and log the predictions with what they cost."""
    tables = {}
    for subset in Predictions._fields:
        images = data.image_set(subset).images
        rows = data.dataset.table.iloc[data.rows(subset)]
        started = time.perf_counter()
        give(SharedPrediction(subset))
        prediction = predict_together(classifier, images)
        tables[subset] = prediction_table(classifier, images, rows, prediction)
        seconds = (time.perf_counter() - started) / len(images)
    run.log_metrics(
        {
            "inference_seconds_per_image": seconds,
            "network_evaluations_per_image": prediction.evaluations,
        }
    )
    predictions = Predictions(**tables)
    log_predictions(run, predictions)
    return predictions


def log_predictions(run: TrackedRun, predictions: Predictions) -> None:
    """Log all predictions as one table, told apart by the column ``subset``."""
    named = [table.assign(subset=subset) for subset, table in predictions._asdict().items()]
    run.log_table(pd.concat(named), "predictions")


class Report(NamedTuple):
    """What was measured on validation and test.

    Attributes:
        table: the test images' table of ``evaluation.evaluation_report``.
        metrics: the logged scalars, ``val_*`` and ``test_*``.
    """

    table: pd.DataFrame
    metrics: dict[str, float]

    def of_images(self) -> pd.DataFrame:
        """The rows of all test images together."""
        return self.table[(self.table["level"] == "image") & (self.table["group"] == "all")]


def evaluate(
    run: TrackedRun,
    config: TrainConfig,
    predictions: Predictions,
    *,
    prior: np.ndarray,
    classes: Sequence[str] = CLASSES,
    uncalibrated: pd.DataFrame | None = None,
) -> Report:
    """Evaluate the test predictions, and log tables, metrics and figures.

    Args:
        run: where to log.
        config: the resolved configuration.
        predictions: of validation and test; thresholds are chosen on validation.
        prior: the share of each class in training, (C,).
        classes: names of the labels.
        uncalibrated: the test predictions as they were before calibration, if that is to be shown.
    """
    report = measure(run, config, predictions, prior=prior)
    log_curves(
        run,
        config.model,
        *predictions,
        classes,
        uncalibrated=uncalibrated,
        n_bootstrap=config.bootstrap,
        seed=config.seed,
    )
    return report


def measure(
    run: TrackedRun, config: TrainConfig, predictions: Predictions, *, prior: np.ndarray
) -> Report:
    """Evaluate the test predictions, and log the table and the metrics; arguments as `evaluate`."""
    validation, test = predictions
    report = partial(
        evaluation_report, n_bootstrap=config.bootstrap, seed=config.seed, class_prior=prior
    )
    table = report(validation, test)
    run.log_table(table, "test_metrics")
    metrics = headline(table, "test")
    of_validation = report(validation, validation)
    metrics |= headline(of_validation[of_validation["level"] == "image"], "val")
    run.log_metrics(metrics)
    return Report(table, metrics)


def _sample_sheet(data: Data, classifier: ScoreBasedClassifier, seed: int) -> Figure:
    """Training images beside as many generated ones of each class."""
    train_images, labels = data.image_set("train")
    generated = [
        classifier.sample(label, SAMPLES_PER_CLASS, seed=seed)
        for label in range(len(data.dataset.classes))
    ]
    return figures.sample_sheet(
        train_images,
        labels,
        np.concatenate(generated),
        np.repeat(np.arange(len(generated)), SAMPLES_PER_CLASS),
        data.dataset.classes,
        per_class=SAMPLES_PER_CLASS,
    )


def publish(
    run: TrackedRun,
    config: TrainConfig,
    data: Data,
    classifier: Classifier,
    report: Report,
) -> None:
    """Log the model, describe the run, and register the model."""
    uri = log_model(run, config, data, classifier)
    card = model_card(config, data, report.table)
    run.describe(card)
    logger.info("%s", "\n".join(metric_table(report.of_images())))
    if config.register_model:
        register(run, uri, config, data, report.metrics, card=card)


def register(
    run: TrackedRun,
    uri: str,
    config: TrainConfig,
    data: Data,
    metrics: Mapping[str, float],
    *,
    card: str,
) -> None:
    """Register the model that a run has logged, with what decides between versions.

    Args:
        run: that fitted it.
        uri: of the logged model.
        config: the resolved configuration.
        data: that it was fitted to.
        metrics: as the run has logged them.
        card: the model's, in markdown.
    """
    aucs = {name: logged_auc(metrics, name) for name in _VERSION_METRICS}
    tags = {
        "dataset": config.dataset,
        "split_digest": data.split.digest,
        "data_digest": data.dataset.digest,
        "n_train_patients": data.n_patients("train"),
        "seed": config.seed,
    } | {name: auc for name, auc in aucs.items() if auc is not None}
    # A registered model's name holds no dot; that of a timm model with a tag does.
    name = f"{config.model.replace('.', '_')}-{config.dataset}"
    version = run.register(uri, name, tags=tags, description=card)
    logger.info(
        "registered %s, version %s: see it with make ui, use it with model_uri=models:/%s/%s",
        name, version, name, version,
    )  # fmt: skip


def log_model(run: TrackedRun, config: TrainConfig, data: Data, classifier: Classifier) -> str:
    """Log the fitted model; its URI."""
    facts = {
        "model": config.model,
        "dataset": config.dataset,
        "data": config.model_dump(mode="json", include=DATA_PARAMETERS),
        "image_size": config.image_size,
        "preprocessing": data.dataset.preprocessing,
        "split_digest": data.split.digest,
        "data_digest": data.dataset.digest,
    }
    # Noise: whoever gets the model does not get a patient's image with it.
    side = settled(config.image_size)
    examples = np.random.default_rng(0).integers(0, 65536, (2, side, side), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier"
        classifier.save(folder)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        return run.log_classifier(
            folder,
            example=(examples / 65535).astype(np.float32),
            answer=answer(classifier, examples),
            prior=dict(zip(classifier.classes, classifier.prior.tolist(), strict=True)),
            metadata=facts,
        )
