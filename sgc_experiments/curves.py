"""Curves of one model with pointwise 95 % bands over patients: accuracy, reliability, abstention.

Numbers only; `figures` draws them. Of a repeated cross-validation, numbers of images are means over
the repeats. Bands of ROC and precision-recall curves are percentiles of the
resamples of the patients, all other limits those of `intervals.py`, which stand in for a band of no
width too. A band holds each point of the true curve in about 95 % of studies, the whole curve less
often: the area between its edges is not the interval of the AUC.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from sgc_experiments.bootstrap import bootstrap
from sgc_experiments.errors import UserError
from sgc_experiments.intervals import PatientCounts, metric_interval
from sgc_experiments.metrics import (
    ECE_BINS,
    Floats,
    Integers,
    precision_recall_points,
    rank_metrics,
    roc_points,
)
from sgc_experiments.predictions import check_predictions, fold_rows, n_repeats

_GRID = np.linspace(0, 1, 101)
_COVERAGES = np.linspace(0.2, 1, 17)


def _two_classes(predictions: pd.DataFrame) -> pd.DataFrame:
    frame = check_predictions(predictions)
    if "probability" not in frame.columns:
        raise UserError("A curve needs two classes; use one_vs_rest for more.")
    if frame["label"].nunique() < 2:
        raise UserError("A ROC or precision-recall curve needs images of both classes.")
    return frame


# Labels, scores and weights (B, N) of one fold, and where to read its curve (G,), to values (B, G).
_Curve = Callable[[Integers, Floats, Floats, Floats], Floats]


class _MeanCurve(NamedTuple):
    """A curve of one model, or the mean of those of a cross-validation, a fold's weight its share.

    The shares are those that make the area under the mean that of `metrics.rank_metrics`.
    """

    metric: str  # that a point of the curve is
    frame: pd.DataFrame
    of_fold: _Curve
    share: Callable[[Floats, Floats], Floats]  # of the weight of positive and of negative images

    def at(self, grid: Floats, weights: Floats) -> Floats:
        """Values at each place of a grid (G,) with the weights (B, N), shape (B, G)."""
        labels, scores = self.frame["label"].to_numpy(), self.frame["log_odds"].to_numpy()
        total, found = np.zeros((len(weights), 1)), np.zeros((len(weights), len(grid)))
        for rows in fold_rows(self.frame):
            own = weights[:, rows]
            positive = own @ labels[rows]
            share = self.share(positive, own.sum(axis=1) - positive)[:, None]
            values = self.of_fold(labels[rows], scores[rows], own, grid)
            found += np.where(share > 0, share * values, 0)
            total += share
        mean: Floats = np.divide(found, total, out=np.full_like(found, np.nan), where=total > 0)
        return mean

    def band(self, n_bootstrap: int, seed: int) -> Floats:
        """Pointwise 95 % limits on the grid, shape (2, 101); NaN where there are none."""

        def statistic(weights: Floats) -> dict[str, Floats]:
            values = self.at(_GRID, weights)
            return {str(k): values[:, k] for k in range(len(_GRID))}

        drawn = bootstrap(statistic, self.frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
        patients = PatientCounts.of(self.frame)
        limits = []
        for k, samples in drawn.samples.items():
            valid = samples[np.isfinite(samples)]
            low, high = np.quantile(valid, [0.025, 0.975]) if len(valid) else (np.nan, np.nan)
            if low == high:
                value = drawn.estimate[k]
                low, high, _ = metric_interval(self.metric, value, samples, patients)
            limits.append((low, high))
        return np.array(limits).T

    def places(self, points: Callable[[Integers, Floats, Floats], tuple[Floats, Floats]]) -> Floats:
        """Where any fold's curve has a point, in ascending order."""
        labels, scores = self.frame["label"].to_numpy(), self.frame["log_odds"].to_numpy()
        found = [
            points(labels[rows], scores[rows], np.ones((1, len(labels[rows]))))[0][0]
            for rows in fold_rows(self.frame)
        ]
        places: Floats = np.unique(np.concatenate(found))
        return places[np.isfinite(places)]


def _true_positive_rates(labels: Integers, scores: Floats, weights: Floats, grid: Floats) -> Floats:
    fpr, tpr = roc_points(labels, scores, weights)
    return np.array([np.interp(grid, x, y) for x, y in zip(fpr, tpr, strict=True)])


def roc_band(
    predictions: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """ROC curve and its band.

    Args:
        predictions: two-class table of `predictions.py`.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Returns:
        The curve (`false_positive_rate`, `true_positive_rate`, from (0, 0) to (1, 1)) and the band
        of the true-positive rate (`false_positive_rate`, `low`, `high`) on a grid. With folds it
        is the mean of their curves, weighted by their pairs, so that its area is the AUC.

    Raises:
        UserError: one class only, or more than two.
    """
    frame = _two_classes(predictions)
    mean = _MeanCurve(
        "sensitivity", frame, _true_positive_rates, lambda positive, negative: positive * negative
    )
    places = mean.places(roc_points)
    # Just before and at each place, where the curve may rise straight up.
    fpr = np.sort(np.concatenate([np.nextafter(places, -1), places]))
    tpr = mean.at(fpr, np.ones((1, len(frame))))[0]
    curve = pd.DataFrame({"false_positive_rate": np.maximum(fpr, 0), "true_positive_rate": tpr})
    low, high = mean.band(n_bootstrap, seed)
    # As the curve rises, so do its limits; neither gets closer. At the end it is 1 by definition.
    low[:-1] = np.minimum.accumulate(low[-2::-1])[::-1]
    high = np.maximum.accumulate(high)
    low[-1] = high[-1] = 1
    return curve, pd.DataFrame({"false_positive_rate": _GRID, "low": low, "high": high})


def _precisions(labels: Integers, scores: Floats, weights: Floats, grid: Floats) -> Floats:
    recalls, precisions = precision_recall_points(labels, scores, weights)
    rows = []
    for recall, precision in zip(recalls, precisions, strict=True):
        # The first threshold that reaches the recall and calls at least one image positive.
        first = np.searchsorted(recall, np.maximum(grid, np.finfo(float).eps))
        rows.append(precision[np.minimum(first, len(precision) - 1)])
    return np.array(rows)


def precision_recall_band(
    predictions: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Precision-recall curve and its band; arguments and errors as `roc_band`.

    Returns:
        The curve (`recall`, `precision`: a step function, constant to the left of each row) and
        the band of the precision (`recall`, `low`, `high`) on a grid. With folds it is the mean of
        their curves, weighted by their positive images, so that its area is the average precision.
        Where it is 1 in nearly all resamples there is no band.
    """
    frame = _two_classes(predictions)
    mean = _MeanCurve(
        "precision",
        frame,
        _precisions,
        lambda positive, negative: np.where(negative > 0, positive, 0),
    )
    recall = mean.places(precision_recall_points)
    # Past a recall of 1, where all images are called positive, stands the prevalence.
    recall = np.append(recall[recall > 0], np.nextafter(1, 2))
    precision = mean.at(recall, np.ones((1, len(frame))))[0]
    curve = pd.DataFrame({"recall": np.minimum(recall, 1), "precision": precision})
    low, high = mean.band(n_bootstrap, seed)
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
        `frequency`, `low`, `high`.
    """
    frame = check_predictions(predictions)
    repeats = n_repeats(frame)
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
        patients = PatientCounts.of(frame[members])
        low, high, _ = metric_interval("prevalence", frequency, resamples.samples[str(b)], patients)
        rows.append({
            "left": b / ECE_BINS,
            "right": (b + 1) / ECE_BINS,
            "n_images": members.sum() / repeats,
            "n_patients": patients.all,
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
        where one class alone is answered.

    Raises:
        UserError: one class only, or more than two.
    """
    frame = _two_classes(predictions)
    error = frame["standard_error"].fillna(0).to_numpy(dtype=np.float64)
    certainty = frame["log_odds"].abs().to_numpy() / np.sqrt(1 + np.pi * error**2 / 8)
    frame = frame.iloc[np.argsort(-certainty, kind="stable")].reset_index(drop=True)
    labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()
    folds, repeats = fold_rows(frame), n_repeats(frame)

    def answered_auc(share: float, weights: Floats) -> Floats:
        before = np.cumsum(weights, axis=1) - weights
        kept = np.clip(share * weights.sum(axis=1, keepdims=True) - before, 0, weights)
        return rank_metrics(labels, scores, kept, folds)["auc"]

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {str(k): answered_auc(share, weights) for k, share in enumerate(_COVERAGES)}

    resamples = bootstrap(statistic, frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
    rows = []
    for k, share in enumerate(_COVERAGES):
        answered = frame.head(int(np.ceil(share * len(frame) - 1e-9)))
        patients = PatientCounts.of(answered)
        auc = resamples.estimate[str(k)]
        low, high, _ = metric_interval("auc", auc, resamples.samples[str(k)], patients)
        rows.append({
            "coverage": share,
            "n_images": len(answered) / repeats,
            "n_patients": patients.all,
            "auc": auc,
            "low": low,
            "high": high,
        })  # fmt: skip
    return pd.DataFrame(rows)
