"""Curves of one model with pointwise 95 % bands over patients: accuracy, reliability, abstention.

Numbers only; `figures` draws them. Bands come from the same patient-clustered bootstrap as every
interval (`bootstrap.py`), so the band of a ROC curve and the interval of its AUC agree.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.special import expit

from sgc_experiments.bootstrap import bootstrap, exact_limit, interval
from sgc_experiments.errors import UserError
from sgc_experiments.intervals import PatientCounts, metric_interval
from sgc_experiments.metrics import (
    ECE_BINS,
    Floats,
    precision_recall_points,
    rank_metrics,
    roc_points,
)
from sgc_experiments.predictions import check_predictions

_GRID = np.linspace(0, 1, 101)
_COVERAGES = np.linspace(0.2, 1, 17)


def _two_classes(predictions: pd.DataFrame) -> pd.DataFrame:
    frame = check_predictions(predictions)
    if "probability" not in frame.columns:
        raise UserError("A curve needs two classes; use one_vs_rest for more.")
    if frame["label"].nunique() < 2:
        raise UserError("A ROC or precision-recall curve needs images of both classes.")
    return frame


def _band(
    curve: Callable[[Floats], Floats], frame: pd.DataFrame, n_bootstrap: int, seed: int
) -> Floats:
    """Pointwise 2.5 % and 97.5 % quantiles of a curve on the grid, shape (2, 101)."""

    def statistic(weights: Floats) -> dict[str, Floats]:
        values = curve(weights)
        return {str(k): values[:, k] for k in range(len(_GRID))}

    resamples = bootstrap(statistic, frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
    samples = np.column_stack(list(resamples.samples.values()))
    samples = samples[np.isfinite(samples).all(axis=1)]
    if not len(samples):
        return np.full((2, len(_GRID)), np.nan)
    return np.quantile(samples, [0.025, 0.975], axis=0)


def roc_band(
    predictions: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """ROC curve and its band.

    Args:
        predictions: two-class table of `predictions.py`.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Returns:
        The curve (`false_positive_rate`, `true_positive_rate`, one row per distinct score) and the
        band of the true-positive rate (`false_positive_rate`, `low`, `high`) on a grid.

    Raises:
        UserError: one class only, or more than two.
    """
    frame = _two_classes(predictions)
    labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()

    def on_grid(weights: Floats) -> Floats:
        fpr, tpr = roc_points(labels, scores, weights)
        return np.array([np.interp(_GRID, x, y) for x, y in zip(fpr, tpr, strict=True)])

    fpr, tpr = roc_points(labels, scores, np.ones((1, len(labels))))
    curve = pd.DataFrame({"false_positive_rate": fpr[0], "true_positive_rate": tpr[0]})
    low, high = _band(on_grid, frame, n_bootstrap, seed)
    return curve, pd.DataFrame({"false_positive_rate": _GRID, "low": low, "high": high})


def precision_recall_band(
    predictions: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Precision-recall curve and its band; arguments and errors as `roc_band`.

    Returns:
        The curve (`recall`, `precision`: a step function, constant to the left of each row) and
        the band of the precision (`recall`, `low`, `high`) on a grid.
    """
    frame = _two_classes(predictions)
    labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()

    def on_grid(weights: Floats) -> Floats:
        recalls, precisions = precision_recall_points(labels, scores, weights)
        rows = []
        for recall, precision in zip(recalls, precisions, strict=True):
            # The first threshold that reaches the recall and calls at least one image positive.
            first = np.searchsorted(recall, np.maximum(_GRID, np.finfo(float).eps))
            rows.append(precision[np.minimum(first, len(precision) - 1)])
        return np.array(rows)

    recall, precision = precision_recall_points(labels, scores, np.ones((1, len(labels))))
    curve = pd.DataFrame({"recall": recall[0], "precision": precision[0]})
    low, high = _band(on_grid, frame, n_bootstrap, seed)
    return curve, pd.DataFrame({"recall": _GRID, "low": low, "high": high})


def reliability_table(
    predictions: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Observed frequency of class 1 in bins of predicted probability, the bins of the ECE.

    Args:
        predictions: two-class table; one class is enough.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Returns:
        One row per non-empty bin: `left`, `right`, `n_images`, `n_patients`, `probability` (mean),
        `frequency`, `low`, `high`. Where all images of a bin agree, the limits are exact
        (Clopper-Pearson, with patients as the sample).
    """
    frame = check_predictions(predictions)
    labels = frame["label"].to_numpy(dtype=np.float64)
    probabilities = expit(frame["log_odds"].to_numpy())
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    inside = (bins[:, None] == np.arange(ECE_BINS)).astype(np.float64)

    def statistic(weights: Floats) -> dict[str, Floats]:
        number, positive = weights @ inside, weights @ (inside * labels[:, None])
        undefined = np.full_like(number, np.nan)
        share = np.divide(positive, number, out=undefined, where=number > 0)
        return {str(b): share[:, b] for b in range(ECE_BINS)}

    resamples = bootstrap(statistic, frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
    rows = []
    for b in np.unique(bins):
        members = bins == b
        frequency = resamples.estimate[str(b)]
        n_patients = frame.loc[members, "patient"].nunique()
        if frequency in (0.0, 1.0):
            low, high = sorted((frequency, exact_limit(frequency, n_patients)))
        else:
            samples = resamples.samples[str(b)]
            low, high = interval(frequency, samples, n_patients=n_patients)
        rows.append({
            "left": b / ECE_BINS,
            "right": (b + 1) / ECE_BINS,
            "n_images": int(members.sum()),
            "n_patients": n_patients,
            "probability": probabilities[members].mean(),
            "frequency": frequency,
            "low": low,
            "high": high,
        })  # fmt: skip
    return pd.DataFrame(rows)


def abstention_table(
    predictions: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """AUC of the images that are answered, when the least certain ones are left to others.

    Certainty is that of the posterior averaged over the noise of its own estimate, of log-odds l
    with standard error s: |l| / √(1 + π s² / 8) (MacKay, Neural Computation 4(5), 1992).

    Args:
        predictions: two-class table of `predictions.py`.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Returns:
        One row per coverage, from 0.2 to 1: `coverage`, `n_images` and `n_patients` (answered),
        `auc`, `low`, `high`. In a resample the most certain share of that resample is answered. NaN
        where one class alone is answered; the limits of a perfect AUC are exact (Clopper-Pearson,
        with pairs of patients as the sample).

    Raises:
        UserError: one class only, or more than two.
    """
    frame = _two_classes(predictions)
    error = frame["standard_error"].fillna(0).to_numpy(dtype=np.float64)
    certainty = frame["log_odds"].abs().to_numpy() / np.sqrt(1 + np.pi * error**2 / 8)
    frame = frame.iloc[np.argsort(-certainty, kind="stable")].reset_index(drop=True)
    labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()

    def statistic(weights: Floats) -> dict[str, Floats]:
        before = np.cumsum(weights, axis=1) - weights
        total = weights.sum(axis=1, keepdims=True)
        return {
            str(k): rank_metrics(labels, scores, np.clip(share * total - before, 0, weights))["auc"]
            for k, share in enumerate(_COVERAGES)
        }

    resamples = bootstrap(statistic, frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
    rows = []
    for k, share in enumerate(_COVERAGES):
        answered = frame.head(int(np.ceil(share * len(frame) - 1e-9)))
        patients = PatientCounts.of(answered)
        auc = resamples.estimate[str(k)]
        low, high, _ = metric_interval("auc", auc, resamples.samples[str(k)], patients)
        rows.append({
            "coverage": share,
            "n_images": len(answered),
            "n_patients": patients.all,
            "auc": auc,
            "low": low,
            "high": high,
        })  # fmt: skip
    return pd.DataFrame(rows)
