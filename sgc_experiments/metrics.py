"""Accuracy metrics of a diagnostic test, computed for many weightings of the images at once.

A bootstrap over patients needs each metric some thousands of times on the same images, and a
resample is nothing but a vector of weights: how often each image was drawn. So every function here
takes `weights` of shape (B, N), one row per resample, and returns an array of shape (B,); a weight
of one for every image gives the plain metric. No image is ever copied or sorted twice.

Rank metrics follow from the cumulative weights of positives and negatives above each distinct
score; all others are ratios of sums that are linear in the weights, hence one matrix product.

- AUC: the trapezoid under the ROC curve, equal to the Mann-Whitney statistic with ties as ½.
- Average precision: Σ (R_k − R_{k−1}) P_k over the distinct scores, without interpolation.
- Partial AUC: area for false-positive rates up to 0.2, standardised to 0.5 for chance and 1 for a
  perfect test (McClish, 1989, https://doi.org/10.1177/0272989X8900900307).
- ECE: Σ_b (n_b/N) |mean probability − observed frequency| over ten bins of equal width
  (Naeini et al., 2015; Guo et al., 2017, https://arxiv.org/abs/1706.04599).
- Sensitivity and specificity: at thresholds that were chosen elsewhere (on validation images).

A metric that a resample leaves undefined (no positive, or no negative image) is NaN there.

The models of a cross-validation have a scale each: temperature, offset and prior are those of their
fold. So images are ranked against images of their own fold only. AUC and partial AUC are those over
all pairs of a positive and a negative image within a fold; average precision is the mean of the
folds', weighted by their positive images. Ranked together, scores that tell nothing beyond the
prior of their fold would have an AUC below 0.5, since a fold with more positive images to test on
left fewer to train on (Parker, Günter & Bedo, 2007, https://doi.org/10.1186/1471-2105-8-326).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = slice | NDArray[np.intp]
"""Which images are ranked against each other: an index of arrays of shape (N,)."""

ALL_ROWS: tuple[Rows, ...] = (slice(None),)

ECE_BINS = 10
PARTIAL_AUC_MAX_FPR = 0.2
TARGET_RATES = (80, 90, 95)
"""Sensitivities and specificities, in per cent, at which operating points are chosen."""


def operating_points(labels: Integers, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Count true and false positives at every threshold, from the strictest to the laxest.

    Args:
        labels: 0 or 1, shape (N,).
        scores: higher means more likely positive, shape (N,).
        weights: non-negative, shape (B, N).

    Returns:
        Weight of the positive and of the negative images at or above each of the U distinct
        scores, each of shape (B, U + 1); the first column is 0, the last the total.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    ordered = weights[:, order]
    above = np.cumsum(ordered, axis=1)[:, last_of_tie]
    true_positives = np.cumsum(ordered * labels[order], axis=1)[:, last_of_tie]
    start = np.zeros((len(weights), 1))
    return (
        np.hstack([start, true_positives]),
        np.hstack([start, above - true_positives]),
    )


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, with NaN where the denominator is 0."""
    undefined = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    ratio: Floats = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return ratio


def _area(tp: Floats, fp: Floats) -> Floats:
    """Weight of the pairs that are in order, ties as ½: AUC times all pairs."""
    area: Floats = np.einsum("bu,bu->b", np.diff(fp, axis=1), tp[:, 1:] + tp[:, :-1]) / 2
    return area


def _pairs(tp: Floats, fp: Floats) -> Floats:
    pairs: Floats = tp[:, -1] * fp[:, -1]
    return pairs


def _gained_precision(tp: Floats, fp: Floats) -> Floats:
    """Average precision times the positive images."""
    gained = np.diff(tp, axis=1)
    precision = np.nan_to_num(_ratio(tp[:, 1:], tp[:, 1:] + fp[:, 1:]))
    area: Floats = np.einsum("bu,bu->b", gained, precision)
    return area


def _partial_area(tp: Floats, fp: Floats) -> Floats:
    """Area for the false-positive rates of the partial AUC, times all pairs."""
    limit = PARTIAL_AUC_MAX_FPR * fp[:, -1:]
    left, right = fp[:, :-1], fp[:, 1:]
    width = np.minimum(right, limit) - np.minimum(left, limit)
    # Where the limit falls inside a segment, the curve is followed to the limit, not to its end.
    share = np.nan_to_num(_ratio(width, right - left))
    height = tp[:, :-1] + np.diff(tp, axis=1) * share / 2
    area: Floats = np.einsum("bu,bu->b", width, height)
    return area


def _auc(labels: Integers, scores: Floats, weights: Floats, folds: Sequence[Rows]) -> Floats:
    counts = [operating_points(labels[rows], scores[rows], weights[:, rows]) for rows in folds]
    areas, pairs = [_area(*c) for c in counts], [_pairs(*c) for c in counts]
    return _ratio(np.sum(areas, axis=0), np.sum(pairs, axis=0))


def rank_metrics(
    labels: Integers, scores: Floats, weights: Floats, folds: Sequence[Rows] = ALL_ROWS
) -> dict[str, Floats]:
    """`auc`, `average_precision` and `partial_auc`, each of shape (B,).

    Args:
        labels: 0 or 1, shape (N,).
        scores: any score that is monotone within a fold, shape (N,).
        weights: shape (B, N).
        folds: the images that are ranked against each other; default: all.
    """
    zero = np.zeros(len(weights))
    pairs, area, partial, positives, precision = zero, zero, zero, zero, zero
    for rows in folds:
        tp, fp = operating_points(labels[rows], scores[rows], weights[:, rows])
        pairs = pairs + _pairs(tp, fp)
        area = area + _area(tp, fp)
        partial = partial + _partial_area(tp, fp)
        both = fp[:, -1] > 0
        positives = positives + np.where(both, tp[:, -1], 0)
        precision = precision + np.where(both, _gained_precision(tp, fp), 0)
    smallest, largest = PARTIAL_AUC_MAX_FPR**2 / 2, PARTIAL_AUC_MAX_FPR
    return {
        "auc": _ratio(area, pairs),
        "average_precision": _ratio(precision, positives),
        "partial_auc": (1 + (_ratio(partial, pairs) - smallest) / (largest - smallest)) / 2,
    }


def roc_points(labels: Integers, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """False- and true-positive rates, each (B, U + 1), from (0, 0) to (1, 1)."""
    tp, fp = operating_points(labels, scores, weights)
    return _ratio(fp, fp[:, -1:]), _ratio(tp, tp[:, -1:])


def precision_recall_points(
    labels: Integers, scores: Floats, weights: Floats
) -> tuple[Floats, Floats]:
    """Recall and precision, each (B, U), from the strictest threshold to the laxest."""
    tp, fp = operating_points(labels, scores, weights)
    return _ratio(tp[:, 1:], tp[:, -1:]), _ratio(tp[:, 1:], tp[:, 1:] + fp[:, 1:])


def probability_metrics(labels: Integers, log_odds: Floats, weights: Floats) -> dict[str, Floats]:
    """`brier`, `log_loss` (nats), `ece` and `accuracy` (at probability ½), each of shape (B,).

    The posterior comes as log-odds, so that a probability that rounds to 0 or 1 still has a finite
    loss.

    Args:
        labels: 0 or 1, shape (N,).
        log_odds: log p/(1 − p) of the positive class, shape (N,).
        weights: shape (B, N).
    """
    probabilities = expit(log_odds)
    total = weights.sum(axis=1)
    squared = (probabilities - labels) ** 2
    loss = np.logaddexp(0, np.where(labels == 1, -log_odds, log_odds))
    correct = (probabilities >= 0.5) == (labels == 1)
    sums = weights @ np.column_stack([squared, loss, correct])
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.where(bins[:, None] == np.arange(ECE_BINS), (probabilities - labels)[:, None], 0.0)
    brier, log_loss, accuracy = (_ratio(column, total) for column in sums.T)
    return {
        "brier": brier,
        "log_loss": log_loss,
        "ece": _ratio(np.abs(weights @ gaps).sum(axis=1), total),
        "accuracy": accuracy,
        "prevalence": _ratio(weights @ labels.astype(float), total),
    }


def decision_rates(
    labels: Integers, decisions: NDArray[np.bool_], weights: Floats
) -> tuple[Floats, Floats]:
    """Sensitivity and specificity of K decision rules, each of shape (B, K).

    Args:
        labels: 0 or 1, shape (N,).
        decisions: True where the rule calls the image positive, shape (N, K).
        weights: shape (B, N).
    """
    positive = weights * labels
    negative = weights - positive
    sensitivity = _ratio(positive @ decisions.astype(float), positive.sum(axis=1)[:, None])
    specificity = _ratio(negative @ (~decisions).astype(float), negative.sum(axis=1)[:, None])
    return sensitivity, specificity


def threshold_metrics(
    labels: Integers,
    probabilities: Floats,
    thresholds: Mapping[str, float | Floats],
    weights: Floats,
) -> dict[str, Floats]:
    """Sensitivity and specificity where validation images put the thresholds, each of shape (B,).

    Args:
        labels: 0 or 1, shape (N,).
        probabilities: of the positive class, shape (N,).
        thresholds: keys `balanced`, `specificity_80` … `sensitivity_95`; an image is positive at
            or above the value, which is a number or one number per image, shape (N,).
        weights: shape (B, N).

    Returns:
        `sensitivity`, `specificity`, `balanced_accuracy` at `balanced`; for every target rate r
        `sensitivity_at_r_specificity`, `specificity_at_r_sensitivity`, and, under the same name
        with `/achieved`, the rate that was aimed at as it turned out on these images.
    """
    names = list(thresholds)
    decisions = np.column_stack([probabilities >= thresholds[name] for name in names])
    sensitivity, specificity = decision_rates(labels, decisions, weights)
    at = {name: (sensitivity[:, k], specificity[:, k]) for k, name in enumerate(names)}
    result = {
        "sensitivity": at["balanced"][0],
        "specificity": at["balanced"][1],
        "balanced_accuracy": (at["balanced"][0] + at["balanced"][1]) / 2,
    }
    for rate in TARGET_RATES:
        name = f"sensitivity_at_{rate}_specificity"
        result[name], result[f"{name}/achieved"] = at[f"specificity_{rate}"]
        name = f"specificity_at_{rate}_sensitivity"
        result[f"{name}/achieved"], result[name] = at[f"sensitivity_{rate}"]
    return result


def multiclass_metrics(
    labels: Integers, probabilities: Floats, weights: Floats, folds: Sequence[Rows] = ALL_ROWS
) -> dict[str, Floats]:
    """`macro_auc` (one versus rest), `accuracy`, `balanced_accuracy`, `log_loss`, `brier`.

    Args:
        labels: class index 0 … C − 1, shape (N,).
        probabilities: shape (N, C), rows sum to 1.
        weights: shape (B, N).
        folds: the images that are ranked against each other; default: all.

    Returns:
        Arrays of shape (B,); `macro_auc` and `balanced_accuracy` are NaN where a class is missing.
    """
    total = weights.sum(axis=1)
    members = labels[:, None] == np.arange(probabilities.shape[1])
    correct = probabilities.argmax(axis=1) == labels
    of_label = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))
    squared = ((probabilities - members) ** 2).sum(axis=1)
    hits = (members & correct[:, None]).astype(float)
    recalls = _ratio(weights @ hits, weights @ members.astype(float))
    aucs = [
        _auc(members[:, c].astype(np.int64), probabilities[:, c], weights, folds)
        for c in range(probabilities.shape[1])
    ]
    return {
        "macro_auc": np.mean(aucs, axis=0),
        "balanced_accuracy": recalls.mean(axis=1),
        "accuracy": _ratio(weights @ correct.astype(float), total),
        "log_loss": _ratio(weights @ loss, total),
        "brier": _ratio(weights @ squared, total),
    }


def logged_auc(metrics: Mapping[str, float], name: str) -> float | None:
    """An AUC by the name that it is logged under, such as ``test_auc``.

    Of more than two classes the macro AUC takes its place; None if neither is there.
    """
    return metrics.get(name, metrics.get(name.replace("_auc", "_macro_auc")))
