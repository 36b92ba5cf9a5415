"""Entry point ``train``: fit one classifier, evaluate it on test and register it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgc_experiments import figures
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.config import TrainConfig, parse, resolve_defaults
from sgc_experiments.evaluation import choose_thresholds, evaluation_report, headline
from sgc_experiments.experiments.datasets import Data, load_data, log_data
from sgc_experiments.experiments.model_card import metric_table, model_card
from sgc_experiments.experiments.models import build_classifier, training_settings
from sgc_experiments.experiments.scoring import answer, prediction_table
from sgc_experiments.protocol import Classifier
from sgc_experiments.tracking import TrackedRun, start_run
from sgc_experiments.training_settings import choose_device

SAMPLES_PER_CLASS = 6
EXAMPLES = 2
VERSION_METRICS = ("val_auc", "test_auc", "test_auc_low", "test_auc_high")

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    train(parse(TrainConfig, arguments))


def train(config: TrainConfig) -> None:
    """Fit one classifier in one MLflow run.

    Raises:
        UserError: the data or a parameter does not allow it; the run is FAILED with the reason.
    """
    gpu = choose_device(config.device).type == "cuda"
    config = resolve_defaults(config, gpu=gpu)
    name = f"{config.model}-{config.dataset}-{config.input}{config.image_size}-seed{config.seed}"
    tags = {"entry_point": "train", "model": config.model, "dataset": config.dataset}
    with start_run(name, tags) as run:
        _announce(config, gpu)
        run.log_config(config.model_dump())
        run.log_environment()
        data = load_data(config)
        log_data(run, data)
        classifier = build_classifier(config, data.dataset.classes)
        fit(run, config, data, classifier)
        evaluation = evaluate(run, config, data, classifier)
        publish(run, config, data, classifier, evaluation)


def _announce(config: TrainConfig, gpu: bool) -> None:
    logger.info(
        "%s on %s: input=%s, image_size=%d, budget=%s",
        config.model, config.dataset, config.input, config.image_size, config.budget,
    )  # fmt: skip
    if config.input == "whole" and not gpu and config.image_size < 384:
        logger.info(
            "No GPU: image_size=%d, not the paper's 384; -P image_size=384 changes it.",
            config.image_size,
        )


def fit(run: TrackedRun, config: TrainConfig, data: Data, classifier: Classifier) -> None:
    """Train, with live metrics and checkpoints; the same command resumes a killed training."""
    checkpoint_dir = config.cache_dir / "checkpoints" / _fingerprint(config, data)
    result = classifier.fit(
        data.image_set("train"),
        data.image_set("validation"),
        settings=training_settings(config),
        checkpoint_dir=checkpoint_dir,
        on_step=run.log_metrics,
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
    run.log_figure(figures.training_curves(history), "training_curves")
    shutil.rmtree(checkpoint_dir, ignore_errors=True)


def _fingerprint(config: TrainConfig, data: Data) -> str:
    """What a checkpoint belongs to: everything that changes the training."""
    relevant = config.model_dump(
        mode="json", exclude={"data_dir", "cache_dir", "config", "bootstrap", "register_model"}
    )
    text = json.dumps([relevant, data.dataset.digest, data.split.digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Evaluation(NamedTuple):
    """What was measured on validation and test.

    Attributes:
        report: the test images' table of ``evaluation.evaluation_report``.
        metrics: the logged scalars, ``val_*`` and ``test_*``.
    """

    report: pd.DataFrame
    metrics: dict[str, float]


def evaluate(
    run: TrackedRun, config: TrainConfig, data: Data, classifier: Classifier
) -> Evaluation:
    """Predict validation and test, and log tables, metrics and figures."""
    tables = {}
    for subset in ("validation", "test"):
        images = data.image_set(subset).images
        rows = data.dataset.table.iloc[data.rows(subset)]
        tables[subset] = prediction_table(classifier, images, rows).assign(subset=subset)
    validation, test = tables["validation"], tables["test"]
    run.log_table(pd.concat([validation, test]), "predictions")
    options = {
        "n_bootstrap": config.bootstrap,
        "seed": config.seed,
        "class_prior": data.prevalence("train"),
    }
    report = evaluation_report(validation, test, **options)
    run.log_table(report, "test_metrics")
    metrics = headline(report, "test")
    metrics |= headline(evaluation_report(validation, validation, **options), "val")
    run.log_metrics(metrics)
    _log_figures(run, config, data, classifier, validation, test)
    return Evaluation(report, metrics)


def _log_figures(
    run: TrackedRun,
    config: TrainConfig,
    data: Data,
    classifier: Classifier,
    validation: pd.DataFrame,
    test: pd.DataFrame,
) -> None:
    options = {"n_bootstrap": config.bootstrap, "seed": config.seed}
    named = {config.model: test}
    threshold = choose_thresholds(validation["label"], validation["probability"])["balanced"]
    decided = (test["probability"] >= threshold).astype(int)
    run.log_figure(figures.roc(named, **options), "roc")
    run.log_figure(figures.precision_recall(named, **options), "precision_recall")
    run.log_figure(figures.reliability(named, **options), "reliability")
    run.log_figure(figures.confusion(test["label"], decided, data.dataset.classes), "confusion")
    run.log_figure(figures.log_odds_histogram(test, data.dataset.classes), "log_odds")
    if isinstance(classifier, ScoreBasedClassifier):
        run.log_figure(_sample_sheet(data, classifier, config.seed), "samples")


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
    evaluation: Evaluation,
) -> None:
    """Log the model, describe the run, and register the model."""
    report = evaluation.report
    whole = report[(report["level"] == "image") & (report["group"] == "all")]
    facts = {
        "dataset": config.dataset,
        "image_size": config.image_size,
        "preprocessing": data.dataset.preprocessing,
        "split_digest": data.split.digest,
        "data_digest": data.dataset.digest,
    }
    examples = data.image_set("test").images[:EXAMPLES]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier"
        classifier.save(folder)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        uri = run.log_classifier(
            folder,
            example=(examples / 65535).astype(np.float32),
            answer=answer(classifier, examples),
            metadata=facts,
        )
    card = model_card(config, data, whole)
    run.describe(card)
    logger.info("%s", "\n".join(metric_table(whole)))
    if config.register_model:
        tags = {
            "dataset": config.dataset,
            "split_digest": data.split.digest,
            "data_digest": data.dataset.digest,
            "n_train_patients": data.n_patients("train"),
            "seed": config.seed,
        } | {name: evaluation.metrics[name] for name in VERSION_METRICS}
        version = run.register(uri, f"{config.model}-{config.dataset}", tags=tags, description=card)
        logger.info("registered %s-%s, version %s", config.model, config.dataset, version)
