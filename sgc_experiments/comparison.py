"""Compare models that saw the same patients: paired differences, p values, their correction.

Two models' errors on one image are correlated, so their metrics are never compared interval against
interval: each resample of the patients is applied to both models, and the interval is that of the
difference. Where every patient has one image, DeLong's test for two correlated ROC curves (DeLong,
DeLong & Clarke-Pearson, 1988, https://doi.org/10.2307/2531595) gives a second opinion; with several
images per patient its assumption fails and it is refused. p values of one family of comparisons
are corrected by Holm's step-down method (Holm, 1979).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from sgc_experiments.bootstrap import Resamples, bootstrap, interval, p_value
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import N_BOOTSTRAP, Thresholds, metrics_of
from sgc_experiments.intervals import PatientCounts
from sgc_experiments.metrics import Floats
from sgc_experiments.predictions import check_predictions, class_names, each_once


def check_same_split(digests: Mapping[str, str]) -> str:
    """Return the digest that all runs share.

    Args:
        digests: split digest of each run, by name.

    Raises:
        UserError: runs of different splits, named by digest.
    """
    by_digest: dict[str, list[str]] = {}
    for run, digest in digests.items():
        by_digest.setdefault(digest, []).append(run)
    if len(by_digest) > 1:
        groups = "; ".join(
            f"split {digest[:12] or 'unknown'}: {', '.join(sorted(runs))}"
            for digest, runs in sorted(by_digest.items())
        )
        raise UserError(
            f"These runs were tested on different patients and cannot be compared ({groups}); "
            "choose runs of one split."
        )
    if not by_digest:
        raise UserError("There is no run to compare.")
    return next(iter(by_digest))


def align(models: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Check that all tables hold the same images, patients and labels, and sort them alike.

    Args:
        models: predictions by name of the model.

    Returns:
        The checked tables in one common order of rows.

    Raises:
        UserError: a model with other images, patients, labels or classes than the first.
    """
    if not models:
        raise UserError("There is no model to compare.")
    frames = {}
    for name, predictions in models.items():
        frame = check_predictions(predictions, f"predictions of {name}")
        key = ["image_id", "fold"] if "fold" in frame.columns else ["image_id"]
        frames[name] = frame.sort_values(key, kind="stable", ignore_index=True)
    first, reference = next(iter(frames.items()))
    for name, frame in frames.items():
        if class_names(frame) != class_names(reference):
            raise UserError(f"{name} and {first} do not distinguish the same classes.")
        for column in ("fold", "image_id", "patient", "label"):
            own, other = (f.get(column, pd.Series()).to_numpy() for f in (frame, reference))
            if not np.array_equal(own, other):
                raise UserError(
                    f"{name} and {first} were not tested on the same images: the column {column} "
                    "differs; compare runs of one split."
                )
    return frames


def holm(p_values: Sequence[float]) -> Floats:
    """Adjust the p values of one family by Holm's method; NaN stays NaN and does not count.

    Args:
        p_values: in [0, 1], any order.

    Returns:
        Adjusted p values in the same order, at most 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(values, np.nan)
    order = np.argsort(values)[: np.isfinite(values).sum()]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted


class DeLong(NamedTuple):
    """Two AUCs on the same images, and the difference first − second."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def delong(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    patients: ArrayLike,
    assume_independent: bool = False,
) -> DeLong:
    """DeLong's test of two models on the same images of independent patients.

    The placement of a positive image is the share of negative images that score below it (ties ½),
    and the reverse; the variance of the AUC difference is the variance of the placements'
    differences over positives, divided by their number, plus the same over negatives.

    Args:
        labels: 0 or 1, shape (N,).
        first: scores of the first model, shape (N,).
        second: scores of the second model, shape (N,).
        patients: patient of each image, shape (N,).
        assume_independent: treat images of one patient as independent, at your own risk.

    Returns:
        Difference with 95 % interval and two-sided p value; p is 1 where the models rank alike.

    Raises:
        UserError: several images of one patient, or fewer than two images of a class.
    """
    positive = np.asarray(labels) == 1
    if len(np.unique(np.asarray(patients))) < len(positive) and not assume_independent:
        raise UserError(
            "DeLong's test takes independent images, but some patients have several; use the "
            "paired bootstrap, or one score per examination."
        )
    if min(positive.sum(), (~positive).sum()) < 2:
        raise UserError("DeLong's test needs at least two images of each class.")
    placements = [_placements(positive, np.asarray(s, dtype=np.float64)) for s in (first, second)]
    (positive_1, negative_1), (positive_2, negative_2) = placements
    variance = sum(
        np.var(a - b, ddof=1) / len(a)
        for a, b in ((positive_1, positive_2), (negative_1, negative_2))
    )
    difference = positive_1.mean() - positive_2.mean()
    error = np.sqrt(variance)
    p = 2 * norm.sf(abs(difference) / error) if error > 0 else float(difference == 0)
    low, high = difference + np.array([-1, 1]) * norm.ppf(0.975) * error
    return DeLong(*map(float, (positive_1.mean(), positive_2.mean(), difference, low, high, p)))


def _placements(positive: np.ndarray, scores: Floats) -> tuple[Floats, Floats]:
    ranks = rankdata(scores)
    n_positive, n_negative = positive.sum(), (~positive).sum()
    below = (ranks[positive] - rankdata(scores[positive])) / n_negative
    above = 1 - (ranks[~positive] - rankdata(scores[~positive])) / n_positive
    return below, above


def paired_differences(
    models: Mapping[str, pd.DataFrame],
    reference: str,
    *,
    metrics: Sequence[str] = ("auc", "average_precision"),
    thresholds: Mapping[str, Thresholds] | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> pd.DataFrame:
    """Difference of every model to a reference, with interval and corrected p value.

    Args:
        models: predictions by name of the model, all on the same images.
        reference: name of the model to compare with.
        metrics: names as in `evaluation.evaluate`.
        thresholds: of each model by name, for metrics at an operating point.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Returns:
        One row per other model and metric: `model`, `reference`, `metric`, `value`,
        `reference_value`, `difference` (model − reference), `low`, `high`, `p`, `n_resamples`,
        `p_holm` (over the models of one metric), `p_delong` (of the AUC where every patient has one
        image and there are no folds, else NaN), `n_images`, `n_patients`.

    Raises:
        UserError: an unknown reference or metric, a single model, other images, one class only.
    """
    frames = align(models)
    if reference not in frames:
        raise UserError(f"No model {reference}; there are {', '.join(sorted(frames))}.")
    if len(frames) < 2:
        raise UserError("A comparison needs at least two models.")
    base = frames[reference]
    if base["label"].nunique() < 2:
        raise UserError("The images to compare on hold one class only.")
    resamples = {
        name: bootstrap(
            metrics_of(frame, thresholds[name] if thresholds else None),
            frame["patient"],
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        for name, frame in frames.items()
    }
    known = [name for name in resamples[reference].estimate if not name.endswith("/achieved")]
    if unknown := sorted(set(metrics) - set(known)):
        raise UserError(f"Unknown metric {', '.join(unknown)}; there are {', '.join(known)}.")
    patients = PatientCounts.of(base)
    table = pd.DataFrame(
        {"model": name, "reference": reference, "metric": metric}
        | _difference(metric, resamples[name], resamples[reference], patients.behind(metric))
        for metric in metrics
        for name in frames
        if name != reference
    )
    table["p_holm"] = table.groupby("metric")["p"].transform(holm)
    table["p_delong"] = [
        _delong_p(frames[row.model], base) if row.metric == "auc" else np.nan
        for row in table.itertuples()
    ]
    return table.assign(n_images=len(each_once(base)), n_patients=patients.all)


def _difference(
    metric: str, model: Resamples, reference: Resamples, n_patients: int
) -> dict[str, float]:
    value, other = model.estimate[metric], reference.estimate[metric]
    samples = model.samples[metric] - reference.samples[metric]
    low, high = interval(value - other, samples, n_patients=n_patients)
    return {
        "value": value,
        "reference_value": other,
        "difference": value - other,
        "low": low,
        "high": high,
        "p": p_value(value - other, samples, n_patients=n_patients),
        "n_resamples": int(np.isfinite(samples).sum()),
    }


def _delong_p(model: pd.DataFrame, reference: pd.DataFrame) -> float:
    """Return the p value of DeLong's test where it applies, else NaN."""
    labels, patients = reference["label"], reference["patient"]
    # Scores of several folds have no common scale.
    if (
        "fold" in reference.columns
        or patients.duplicated().any()
        or labels.value_counts().min() < 2
    ):
        return float("nan")
    return delong(labels, model["log_odds"], reference["log_odds"], patients=patients).p
