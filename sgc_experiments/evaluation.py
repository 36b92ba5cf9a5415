"""Evaluate one model as a diagnostic test: metrics with intervals, beside the majority class.

Whatever is chosen (operating points) is chosen on validation images; whatever is reported comes
from test images with an interval over patients (`intervals.py`), and beside it stands what always
answering the commoner class would score: on a skewed data set that is the figure to beat.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit

from sgc_experiments.bootstrap import Statistic, bootstrap
from sgc_experiments.errors import UserError
from sgc_experiments.intervals import PatientCounts, metric_interval
from sgc_experiments.metrics import (
    TARGET_RATES,
    Floats,
    multiclass_metrics,
    operating_points,
    probability_metrics,
    rank_metrics,
    threshold_metrics,
)
from sgc_experiments.predictions import (
    LEVELS,
    aggregate,
    check_predictions,
    class_names,
    class_probabilities,
    each_once,
    fold_rows,
    per_row,
)

N_BOOTSTRAP = 2000
COLUMNS = (
    "metric", "value", "low", "high", "majority_class", "achieved", "interval",
    "n_resamples", "n_images", "n_patients", "n_positive",
)  # fmt: skip
Thresholds = Mapping[str, float | Floats]

# An answer "always negative" and "always positive", for any probability.
_NEVER, _ALWAYS = 2.0, 0.0
_ROUNDING = 1e-12


def choose_thresholds(labels: Sequence[int], probabilities: Sequence[float]) -> dict[str, float]:
    """Choose operating points; meant for validation images, never for those reported on.

    A threshold lies midway between two observed probabilities, so that rounding cannot flip the
    image that defined it; an image is positive at or above it.

    Args:
        labels: 0 or 1, both present, shape (N,).
        probabilities: of the positive class, shape (N,).

    Returns:
        `balanced`: the greatest sensitivity + specificity (the laxest of equals);
        `specificity_80`, `_90`, `_95`: the laxest threshold with at least that specificity;
        `sensitivity_80`, `_90`, `_95`: the strictest threshold with at least that sensitivity.

    Raises:
        UserError: one class only.
    """
    truth = np.asarray(labels, dtype=np.int64)
    values = np.asarray(probabilities, dtype=np.float64)
    if len(np.unique(truth)) != 2:
        raise UserError(
            "The validation images hold one class only, so no threshold can be chosen on them; "
            "take more patients for validation or another split seed."
        )
    tp, fp = operating_points(truth, values, np.ones((1, len(truth))))
    sensitivity = tp[0] / tp[0, -1]
    specificity = 1 - fp[0] / fp[0, -1]
    cuts = _cuts(np.unique(values)[::-1])
    youden = sensitivity + specificity
    chosen = {"balanced": cuts[np.flatnonzero(youden >= youden.max() - _ROUNDING)[-1]]}
    for rate in TARGET_RATES:
        target = rate / 100 - _ROUNDING
        chosen[f"specificity_{rate}"] = cuts[np.flatnonzero(specificity >= target)[-1]]
        chosen[f"sensitivity_{rate}"] = cuts[np.flatnonzero(sensitivity >= target)[0]]
    return {name: float(cut) for name, cut in chosen.items()}


def _cuts(distinct: Floats) -> Floats:
    """Thresholds above, between and below distinct probabilities in descending order."""
    above = np.nextafter(1.0, 2.0) if distinct[0] >= 1 else (1 + distinct[0]) / 2
    between = (distinct[:-1] + distinct[1:]) / 2
    # The midpoint of two neighbouring floats may round to the lower one; the cut must exclude it.
    between = np.where(between > distinct[1:], between, distinct[:-1])
    return np.concatenate([[above], between, [_ALWAYS]])


class _Settings(NamedTuple):
    n_bootstrap: int
    seed: int
    class_prior: Sequence[float] | np.ndarray | None


def metrics_of(frame: pd.DataFrame, thresholds: Thresholds | None = None) -> Statistic:
    """Bind checked predictions, so that only the weights of the images remain to be given.

    Args:
        frame: from `check_predictions`.
        thresholds: for the metrics that need one (two classes); None leaves them out.

    Returns:
        Function from weights (B, N) to the metrics by name, each of shape (B,).
    """
    labels, folds = frame["label"].to_numpy(), fold_rows(frame)
    if class_names(frame):
        classes = class_probabilities(frame)
        return lambda weights: multiclass_metrics(labels, classes, weights, folds)
    log_odds = frame["log_odds"].to_numpy()
    probabilities = frame["probability"].to_numpy(dtype=np.float64)

    def statistic(weights: Floats) -> dict[str, Floats]:
        metrics = rank_metrics(labels, log_odds, weights, folds)
        if thresholds is not None:
            metrics |= threshold_metrics(labels, probabilities, thresholds, weights)
        return metrics | probability_metrics(labels, log_odds, weights)

    return statistic


def evaluate(
    predictions: pd.DataFrame,
    thresholds: Thresholds | None,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
    class_prior: Sequence[float] | np.ndarray | None = None,
) -> pd.DataFrame:
    """Compute every metric with its 95 % interval by patient-clustered bootstrap.

    Args:
        predictions: table of `predictions.py`, of two or more classes.
        thresholds: from `choose_thresholds` on validation images; None leaves the metrics out that
            need one. More than two classes need none.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples; equal patients and seed give equal resamples.
        class_prior: share of each class in training, which the majority-class answer uses;
            default: in these predictions.

    Returns:
        One row per metric with the columns `COLUMNS`: `majority_class` is the metric of always
        answering the commonest class; `achieved` the specificity (sensitivity) that a threshold
        chosen for a given one has on these images; `interval` one of "bootstrap", "exact" (perfect
        result) or "none"; `n_resamples` counts those in which the metric was defined (both classes
        drawn); `n_positive` is the number of images of class 1 (NaN with more classes).

    Raises:
        UserError: one class only, or a table that `check_predictions` refuses.
    """
    frame = check_predictions(predictions)
    classes = len(class_names(frame)) or 2
    present = frame["label"].nunique()
    if present < classes:
        raise UserError(
            f"The images to evaluate hold {present} of {classes} classes, so that AUC, sensitivity "
            "and specificity do not exist; evaluate on images of every class."
        )
    return _table(frame, thresholds, _Settings(n_bootstrap, seed, class_prior))


def evaluation_report(
    validation: pd.DataFrame,
    test: pd.DataFrame,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
    class_prior: Sequence[float] | np.ndarray | None = None,
) -> pd.DataFrame:
    """Evaluate per image, breast and examination, and per view and density where known.

    Thresholds come from the validation predictions, at each level its own. With a column `fold` in
    both tables each fold's thresholds come from that fold's validation predictions, and images are
    ranked within their fold (`metrics.py`).

    Args:
        validation: predictions for the validation images.
        test: predictions for the test images (with `fold`: pooled out-of-fold predictions).
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.
        class_prior: share of each class in training.

    Returns:
        The table of `evaluate` with two columns before it: `level` (image, breast, exam) and
        `group` ("all", "view CC", "density 3", …). A subgroup with one class keeps the metrics
        that exist for it; the others are NaN.

    Raises:
        UserError: as `evaluate` and `choose_thresholds`.
    """
    settings = _Settings(n_bootstrap, seed, class_prior)
    test = check_predictions(test, "test predictions")
    if class_names(test):
        table = evaluate(test, None, **settings._asdict())
        return table.assign(level="image", group="all")[["level", "group", *COLUMNS]]
    validation = check_predictions(validation, "validation predictions")
    sided = (pd.concat([validation, test])["laterality"] != "").all()
    parts = []
    for level in LEVELS:
        if level == "breast" and not sided:
            continue
        scored = aggregate(test, level)
        thresholds = _validation_thresholds(aggregate(validation, level), scored)
        table = evaluate(scored, thresholds, **settings._asdict())
        parts.append(table.assign(level=level, group="all"))
        if level == "image":
            parts += _subgroups(scored, thresholds, settings)
    return pd.concat(parts, ignore_index=True)[["level", "group", *COLUMNS]]


def headline(report: pd.DataFrame, prefix: str) -> dict[str, float]:
    """Flatten the whole-group rows of a report to scalars for tracking.

    Returns:
        `<prefix>_auc`, `<prefix>_auc_low`, `<prefix>_auc_high`, …, `<prefix>_breast_auc`, …;
        undefined (NaN) values are left out.
    """
    scalars: dict[str, float] = {}
    for row in report[report["group"] == "all"].itertuples():
        level = "" if row.level == "image" else f"{row.level}_"
        name = f"{prefix}_{level}{row.metric}"
        scalars |= {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high}
    return {name: float(value) for name, value in scalars.items() if np.isfinite(value)}


def _validation_thresholds(validation: pd.DataFrame, test: pd.DataFrame) -> Thresholds:
    if "fold" not in test.columns or "fold" not in validation.columns:
        return choose_thresholds(validation["label"], validation["probability"])
    by_fold = {
        fold: choose_thresholds(part["label"], part["probability"])
        for fold, part in validation.groupby("fold")
    }
    return per_row(test, by_fold)


def _subgroups(
    frame: pd.DataFrame, thresholds: Thresholds, settings: _Settings
) -> list[pd.DataFrame]:
    tables = []
    for column in ("view", "density"):
        for value in sorted(set(frame[column]) - {""}):
            rows = (frame[column] == value).to_numpy()
            own = {k: np.broadcast_to(v, len(frame))[rows] for k, v in thresholds.items()}
            table = _table(frame[rows].reset_index(drop=True), own, settings)
            tables.append(table.assign(level="image", group=f"{column} {value}"))
    return tables


def _majority_class(
    frame: pd.DataFrame, class_prior: Sequence[float] | np.ndarray | None, rates: bool
) -> dict[str, float]:
    """Metrics of the answer that gives every image the class prior as its probabilities."""
    classes = class_names(frame)
    n_classes = len(classes) or 2
    prior = np.bincount(frame["label"], minlength=n_classes) if class_prior is None else class_prior
    prior = np.asarray(prior, dtype=np.float64) / np.sum(prior)
    thresholds: dict[str, float] = {"balanced": 0.5}
    if classes:
        constant = frame.assign(
            **{f"probability_{c}": p for c, p in zip(classes, prior, strict=True)}
        )
    else:
        rounded = np.finfo(np.float64).eps
        log_odds = logit(np.clip(prior[1], rounded, 1 - rounded))
        constant = frame.assign(probability=prior[1], log_odds=log_odds)
        for rate in TARGET_RATES:
            thresholds |= {f"specificity_{rate}": _NEVER, f"sensitivity_{rate}": _ALWAYS}
    metrics = metrics_of(constant, thresholds if rates else None)(np.ones((1, len(frame))))
    return {name: float(value[0]) for name, value in metrics.items()}


def _table(frame: pd.DataFrame, thresholds: Thresholds | None, settings: _Settings) -> pd.DataFrame:
    """Table of `evaluate` for a checked frame, which may lack a class."""
    resamples = bootstrap(
        metrics_of(frame, thresholds),
        frame["patient"],
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
    )
    majority = _majority_class(frame, settings.class_prior, thresholds is not None)
    patients = PatientCounts.of(frame)
    rows = []
    for metric, value in resamples.estimate.items():
        if metric.endswith("/achieved"):
            continue
        samples = resamples.samples[metric]
        low, high, kind = metric_interval(metric, value, samples, patients)
        achieved = resamples.estimate.get(f"{metric}/achieved", np.nan)
        defined = int(np.isfinite(samples).sum())
        rows.append((metric, value, low, high, majority[metric], achieved, kind, defined))
    labels = each_once(frame)["label"]
    sizes = {
        "n_images": len(labels),
        "n_patients": patients.all,
        "n_positive": np.nan if class_names(frame) else int((labels == 1).sum()),
    }
    return pd.DataFrame(rows, columns=list(COLUMNS[:8])).assign(**sizes)
