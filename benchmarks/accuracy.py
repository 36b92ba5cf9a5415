"""AUCs that the benchmarks tell, and their differences, with intervals over patients."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sgc_experiments.bootstrap import bootstrap, interval
from sgc_experiments.intervals import PatientCounts
from sgc_experiments.metrics import rank_metrics


class Estimate(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Of scores (N,) that are larger where label 1 is more likely."""
    return float(rank_metrics(labels, scores, np.ones((1, len(labels))))["auc"][0])


def estimate_auc(
    labels: np.ndarray, patients: np.ndarray, scores: np.ndarray, minus: np.ndarray | None = None
) -> Estimate:
    """AUC of `scores`, or what they have above that of other scores of the same images, in pairs.

    All arguments have one entry per image.
    """

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        own = rank_metrics(labels, scores, weights)["auc"]
        return {"auc": own if minus is None else own - rank_metrics(labels, minus, weights)["auc"]}

    resamples = bootstrap(statistic, patients, n_bootstrap=2000, seed=0)
    value = resamples.estimate["auc"]
    counts = PatientCounts.of(pd.DataFrame({"label": labels, "patient": patients}))
    ends = interval(value, resamples.samples["auc"], n_patients=counts.behind("auc"))
    return Estimate(value, *ends)
