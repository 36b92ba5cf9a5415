"""Test images of every outcome, with the map of what the generative classifier saw in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sgc_experiments import figures
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.experiments.datasets import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A map spreads the evidence of one number over all pixels: it takes more draws to be seen than the
# number takes to be known.
_MORE_EVALUATIONS = 16


def explanation_sheet(
    data: Data,
    classifier: ScoreBasedClassifier,
    test: pd.DataFrame,
    called_malignant: pd.Series,
    *,
    seed: int,
) -> Figure:
    """Draw two test images of each outcome: its most certain one, and a typical one.

    Args:
        data: the images that the classifier was tested on; two classes.
        classifier: the fitted classifier.
        test: its predictions for all test images, in their order.
        called_malignant: the decision on each row of ``test``.
        seed: of the noise behind the maps.
    """
    chosen = choose_cases(test, called_malignant)
    rows = data.rows("test")[chosen["position"]]
    evaluations = _MORE_EVALUATIONS * classifier.settings.evaluations
    maps = classifier.explain(data.dataset.images[rows], evaluations=evaluations, seed=seed)
    cases = [
        figures.Explanation(
            image=data.dataset.images[row],
            evidence=evidence / classifier.calibration.temperature,
            box=data.dataset.boxes[row],
            outcome=case.outcome,
            remark=case.remark,
            log_odds=case.log_odds,
            standard_error=case.standard_error,
        )
        for row, evidence, case in zip(rows, maps, chosen.itertuples(), strict=True)
    ]
    return figures.explanation_sheet(cases, classes=classifier.classes)


def choose_cases(test: pd.DataFrame, called_malignant: pd.Series) -> pd.DataFrame:
    """For each outcome, the image with the most extreme log-odds and the one with the median.

    Args:
        test: two-class predictions.
        called_malignant: the decision on each row of ``test``.

    Returns:
        At most eight rows: ``position`` in ``test``, ``outcome``, ``remark``, ``log_odds`` and
        ``standard_error``; the typical ones first, an outcome without images left out.
    """
    right = called_malignant.to_numpy(bool) == (test["label"].to_numpy() == 1)
    side = np.where(called_malignant, "positive", "negative")
    outcome = np.char.add(np.where(right, "true ", "false "), side)
    picked: dict[str, list[tuple[int, str]]] = {"typical": [], "most certain": []}
    for name in ("true positive", "false positive", "true negative", "false negative"):
        members = np.flatnonzero(outcome == name)
        ranked = members[np.argsort(test["log_odds"].to_numpy()[members], kind="stable")]
        if not len(ranked):
            continue
        picked["typical"].append((int(ranked[len(ranked) // 2]), name))
        if len(ranked) > 1:
            extreme = ranked[-1] if name.endswith("positive") else ranked[0]
            picked["most certain"].append((int(extreme), name))
    return pd.DataFrame(
        [
            {
                "position": position,
                "outcome": name,
                "remark": remark,
                **test.iloc[position][["log_odds", "standard_error"]],
            }
            for remark, pairs in picked.items()
            for position, name in pairs
        ]
    )
