"""What a fitted classifier says of images, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.protocol import Classifier, Prediction
from sgc_experiments.uncertainty import abstains

TABLE_COLUMNS = ["image_id", "patient", "exam", "laterality", "view", "density", "label"]


def answer(
    classifier: Classifier,
    images: np.ndarray,
    *,
    prior: Sequence[float] | None = None,
    evaluations: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Classify prepared images.

    Args:
        classifier: a fitted classifier.
        images: (N, S, S) uint16.
        prior: share of each class where the images come from; None: as in training.
        evaluations: of the network per image, by a generative classifier; None: as in training.
        seed: of a generative classifier's noise.

    Returns:
        One row per image: ``probability_<class>`` for each class; for two classes, the calibrated
        ``log_odds`` of the second with its ``standard_error`` (for more, ``log_odds_<class>`` of
        each against the first, with ``standard_error_<class>``); where the model can tell,
        ``out_of_distribution``; and ``abstain``, whether the answer had better not be used (see
        ``uncertainty.py``).

    Raises:
        UserError: ``evaluations`` for a model that draws nothing.
    """
    prediction = _predict(classifier, images, evaluations, seed)
    posterior = classifier.posterior(prediction.log_odds, prior)
    columns: dict[str, Any] = {
        f"probability_{name}": posterior[:, index] for index, name in enumerate(classifier.classes)
    }
    for index, name in enumerate(classifier.classes[1:], start=1):
        ending = f"_{name}" if len(classifier.classes) > 2 else ""
        # From both columns, since 1 - p loses the digits of a p close to 1.
        columns[f"log_odds{ending}"] = np.log(posterior[:, index]) - np.log(posterior[:, 0])
        spread = prediction.standard_error[:, index] / classifier.calibration.temperature
        columns[f"standard_error{ending}"] = spread
    if prediction.out_of_distribution is not None:
        columns["out_of_distribution"] = prediction.out_of_distribution
    columns["abstain"] = abstains(prediction, classifier.calibration)
    return pd.DataFrame(columns)


def _predict(
    classifier: Classifier, images: np.ndarray, evaluations: int | None, seed: int
) -> Prediction:
    if isinstance(classifier, ScoreBasedClassifier):
        return classifier.predict_log_odds(images, evaluations=evaluations, seed=seed)
    if evaluations is not None:
        raise UserError("This model draws nothing that evaluations could be the number of.")
    return classifier.predict_log_odds(images)


def prediction_table(
    classifier: Classifier, images: np.ndarray, rows: pd.DataFrame
) -> pd.DataFrame:
    """Predictions beside what is known of the images: the table of ``predictions.py``.

    Args:
        classifier: a fitted classifier.
        images: (N, S, S) uint16.
        rows: the images' rows of the image table.
    """
    known = rows[TABLE_COLUMNS].reset_index(drop=True)
    table = pd.concat([known, answer(classifier, images)], axis=1)
    if len(classifier.classes) == 2:
        benign, malignant = (f"probability_{name}" for name in classifier.classes)
        table = table.drop(columns=benign).rename(columns={malignant: "probability"})
    return table
