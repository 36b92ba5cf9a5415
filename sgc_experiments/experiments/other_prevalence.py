"""``prevalence``: answers for other places than those that the training images come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sgc_experiments.bootstrap import bootstrap, interval
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.scoring import posterior_of
from sgc_experiments.metrics import Floats
from sgc_experiments.prevalence import estimate_prevalence
from sgc_experiments.tracking import TrackedRun


def wanted_prevalence(wanted: float | str, posterior: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The share of each class, (C,).

    Args:
        wanted: "training", "estimate", or the share of the second of two classes.
        posterior: (N, C) for the prevalence of training; what an estimate is made from.
        prior: share of each class in training, (C,).

    Raises:
        UserError: one number for more than two classes.
    """
    if wanted == "training":
        return prior
    if wanted == "estimate":
        return estimate_prevalence(posterior, prior)
    if len(prior) != 2:
        raise UserError(
            f"prevalence={wanted} is one number, and the model has {len(prior)} classes: use "
            "prevalence=estimate or prevalence=training."
        )
    return np.array([1 - float(wanted), float(wanted)])


def log_prevalence(run: TrackedRun, classes: Sequence[str], shares: np.ndarray) -> None:
    """Record the share of each class that the answers of a run hold for."""
    run.log_metrics(
        {f"prevalence_{name}": float(s) for name, s in zip(classes, shares, strict=True)}
    )


def log_interval(
    run: TrackedRun,
    classes: Sequence[str],
    predictions: pd.DataFrame,
    prior: np.ndarray,
    *,
    n_bootstrap: int,
    seed: int,
) -> None:
    """Record 95 % intervals, over patients, of an estimated prevalence.

    Args:
        run: where to log.
        classes: names of the classes.
        predictions: a table of ``prediction_table``, for the prevalence of training.
        prior: share of each class in training, (C,).
        n_bootstrap: resamples of the patients.
        seed: of the resamples.
    """
    posterior = posterior_of(predictions, classes)

    def statistic(weights: Floats) -> dict[str, Floats]:
        return dict(zip(classes, estimate_prevalence(posterior, prior, weights).T, strict=True))

    patients = predictions["patient"]
    resamples = bootstrap(statistic, patients, n_bootstrap=n_bootstrap, seed=seed)
    for name in classes:
        low, high = interval(
            resamples.estimate[name], resamples.samples[name], n_patients=patients.nunique()
        )
        run.log_metrics({f"prevalence_{name}_low": low, f"prevalence_{name}_high": high})
