"""Entry point ``train``: fit one classifier, evaluate it on test and register it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sgc_experiments import figures
from sgc_experiments.classifier import Classifier
from sgc_experiments.config import TrainConfig, parse, resolve_defaults
from sgc_experiments.evaluation import evaluation_report, headline
from sgc_experiments.experiments.datasets import Data, load_data, log_data
from sgc_experiments.experiments.model_card import metric_table, model_card
from sgc_experiments.experiments.models import build_classifier, training_settings
from sgc_experiments.experiments.scoring import answer, prediction_table
from sgc_experiments.tracking import TrackedRun, start_run
from sgc_experiments.training import gpu_available

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    train(parse(TrainConfig, arguments))


def train(config: TrainConfig) -> None:
    """Fit one classifier in one MLflow run.

    Raises:
        UserError: the data or a parameter does not allow it; the run is FAILED with the reason.
    """
    gpu = gpu_available(config.device)
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
        report = evaluate(run, config, data, classifier)
        publish(run, config, data, classifier, report)


def _announce(config: TrainConfig, gpu: bool) -> None:
    logger.info(
        "%s on %s: input=%s, image_size=%d, budget=%s",
        config.model, config.dataset, config.input, config.image_size, config.budget,
    )  # fmt: skip
    if config.input == "whole" and not gpu and config.image_size < 384:
        logger.info(
            "No GPU: image_size=%d instead of the paper's 384; pass -P image_size=384 to change it.",
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


def evaluate(
    run: TrackedRun, config: TrainConfig, data: Data, classifier: Classifier
) -> pd.DataFrame:
    """Predict validation and test, and log tables, metrics and figures.

    Returns:
        The report of the test images (see ``evaluation.evaluation_report``).
    """
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
    run.log_metrics(headline(report, "test"))
    run.log_metrics(headline(evaluation_report(validation, validation, **options), "val"))
    _log_figures(run, config, data, classifier, validation, test)
    return report
