"""Cross-validation: a nested run per fold, and one result from the pooled out-of-fold predictions.

The folds depend on the data and ``split_seed`` alone, so that every model has the same. A fold that
a broken-off command has finished is taken over and not fitted again. Folds are fitted to be judged,
not to be used: none of their models is stored.

Probabilities and decisions of all folds are judged together, each decision by the threshold of its
fold. AUC and average precision rank images within a fold, whose model has a scale of its own
(``metrics.py``).
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from sgc_experiments.config import TrainConfig
from sgc_experiments.data import ImageDataset
from sgc_experiments.data.splits import Split
from sgc_experiments.evaluation import evaluation_report, headline
from sgc_experiments.experiments.datasets import Data, log_data, split_folds
from sgc_experiments.experiments.fitting import (
    Predictions,
    evaluate,
    fingerprint,
    fit,
    log_predictions,
    predict,
)
from sgc_experiments.experiments.leakage import check_start, manifest_digest
from sgc_experiments.experiments.model_card import metric_table
from sgc_experiments.experiments.models import build_classifier
from sgc_experiments.experiments.starting_weights import seen_by_registered
from sgc_experiments.past_runs import PastRun, finished_runs
from sgc_experiments.provenance import commit
from sgc_experiments.tracking import TrackedRun, start_run

# Cost of all folds together: totals, and what is a mean.
_TOTALS = ("training_seconds", "training_steps", "training_images")
_MEANS = ("inference_seconds_per_image", "network_evaluations_per_image")

logger = logging.getLogger(__name__)


def cross_validate(run: TrackedRun, config: TrainConfig, dataset: ImageDataset) -> None:
    """Fit every fold in a nested run, and evaluate the pooled predictions in ``run``.

    Raises:
        UserError: there are too few patients for the folds, or a fold cannot be fitted.
    """
    splits = split_folds(config, dataset)
    manifest = pd.concat(
        [split.manifest.assign(fold=fold) for fold, split in splits.items()], ignore_index=True
    )
    run.set_tags(
        {
            "data_digest": dataset.digest,
            "split_digest": manifest_digest(manifest),
            "n_train_patients": round(np.mean([_n_train_patients(s) for s in splits.values()])),
            "n_quarantined": len(dataset.quarantine),
            "classes": ",".join(dataset.classes),
        }
    )
    run.log_table(manifest, "split")
    run.log_table(dataset.quarantine, "quarantine")
    if config.init_from:  # else the last fold may be refused
        check_start(seen_by_registered(config.init_from), manifest, f"init_from={config.init_from}")
    folds = [_fold(config, Data(dataset, split), fold) for fold, split in splits.items()]
    costs = {name: sum(f.metrics[name] for f in folds) for name in _TOTALS}
    costs |= {name: float(np.mean([f.metrics[name] for f in folds])) for name in _MEANS}
    run.log_metrics(costs)
    predictions = _pooled(folds)
    log_predictions(run, predictions)
    prior = np.bincount(dataset.table["label"], minlength=len(dataset.classes))
    report = evaluate(run, config, predictions, prior=prior / prior.sum(), classes=dataset.classes)
    lines = metric_table(report.of_images())
    run.describe("\n".join([_headline(config, splits), "", *lines]))
    logger.info("%s", "\n".join(lines))


def _fold(config: TrainConfig, data: Data, fold: str) -> PastRun:
    """The finished run of one fold: found, or fitted now."""
    # Another version of the code may give other numbers.
    tags = {"fold": fold, "fit_key": fingerprint(config, data), "commit": commit()}
    for past in finished_runs(tags=tags):
        logger.info("fold %s of %s: taken over from run %s", fold, config.model, past.run_id)
        return past
    tags |= {"entry_point": "fold", "model": config.model, "dataset": config.dataset}
    name = f"{config.model}-{config.dataset}-fold{fold}"
    with start_run(name, tags, config=config, nested=True) as run:
        logger.info("fold %s of %s", fold, config.model)
        run.log_config(config.model_dump())
        log_data(run, data)
        classifier = build_classifier(config, data.dataset.classes)
        fit(run, config, data, classifier)
        predictions = predict(run, data, classifier)
        report = evaluation_report(
            *predictions,
            n_bootstrap=config.bootstrap,
            seed=config.seed,
            class_prior=data.prevalence("train"),
        )
        run.log_metrics(headline(report, "test"))
    (finished,) = (past for past in finished_runs(tags=tags) if past.run_id == run.run_id)
    return finished


def _pooled(folds: list[PastRun]) -> Predictions:
    """The predictions of all folds, as they were logged."""
    table = pd.concat(
        [past.table("predictions").assign(fold=past.tags["fold"]) for past in folds],
        ignore_index=True,
    )
    subsets = dict(list(table.groupby("subset")))
    return Predictions(
        *(
            subsets[name].drop(columns="subset").reset_index(drop=True)
            for name in Predictions._fields
        )
    )


def _n_train_patients(split: Split) -> int:
    return int(split.manifest.loc[split.manifest["subset"] == "train", "patient"].nunique())


def _headline(config: TrainConfig, splits: dict[str, Split]) -> str:
    repeats = f", repeated {config.repeats} times" if config.repeats > 1 else ""
    return (
        f"**{config.model}** on **{config.dataset}**: {config.folds}-fold cross-validation by "
        f"patient{repeats}; {len(splits)} nested runs, pooled out-of-fold predictions, ranked "
        "within their fold. For research, not for diagnosis."
    )
