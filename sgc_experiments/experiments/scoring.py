"""What a fitted classifier says of images, as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sgc_experiments.protocol import Classifier
from sgc_experiments.uncertainty import abstains

TABLE_COLUMNS = ["image_id", "patient", "exam", "laterality", "view", "density", "label"]


def answer(classifier: Classifier, images: np.ndarray) -> pd.DataFrame:
    """Classify prepared images.

    Args:
        classifier: a fitted classifier.
        images: (N, S, S) uint16.

    Returns:
        One row per image: ``probability_<class>`` for each class; for two classes, the calibrated
        ``log_odds`` of the second with its ``standard_error``; where the model can tell,
        ``out_of_distribution``; and ``abstain``, whether the answer had better not be used (see
        ``uncertainty.py``).
    """
    prediction = classifier.predict_log_odds(images)
    posterior = classifier.posterior(prediction.log_odds)
    columns: dict[str, Any] = {
        f"probability_{name}": posterior[:, index] for index, name in enumerate(classifier.classes)
    }
    if len(classifier.classes) == 2:
        # From both columns, since 1 - p loses the digits of a p close to 1.
        columns["log_odds"] = np.log(posterior[:, 1]) - np.log(posterior[:, 0])
        spread = prediction.standard_error[:, 1] / classifier.calibration.temperature
        columns["standard_error"] = spread
    if prediction.out_of_distribution is not None:
        columns["out_of_distribution"] = prediction.out_of_distribution
    columns["abstain"] = abstains(prediction, classifier.calibration)
    return pd.DataFrame(columns)


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
