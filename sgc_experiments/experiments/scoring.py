"""What a fitted classifier says of images, as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sgc_experiments.classifier import Classifier, Prediction

TABLE_COLUMNS = ["image_id", "patient", "exam", "laterality", "view", "density"]


def answer(classifier: Classifier, images: np.ndarray) -> pd.DataFrame:
    """Classify prepared images.

    Args:
        classifier: a fitted classifier.
        images: (N, S, S) uint16.

    Returns:
        One row per image: ``probability_<class>`` for each class and, for two classes, the
        calibrated ``log_odds`` of the second with its ``standard_error``.
    """
    prediction = classifier.predict_log_odds(images)
    return to_table(classifier, prediction)


def to_table(classifier: Classifier, prediction: Prediction) -> pd.DataFrame:
    """The same for a prediction that is there already."""
    posterior = classifier.posterior(prediction.log_odds)
    columns: dict[str, Any] = {
        f"probability_{name}": posterior[:, index] for index, name in enumerate(classifier.classes)
    }
    if len(classifier.classes) == 2:
        columns["log_odds"] = prediction.log_odds[:, 1]
        columns["standard_error"] = prediction.standard_error[:, 1]
    return pd.DataFrame(columns)


def prediction_table(
    classifier: Classifier, prediction: Prediction, rows: pd.DataFrame, subset: str
) -> pd.DataFrame:
    """Predictions of one subset beside what is known of its images.

    Args:
        classifier: a fitted classifier.
        prediction: its prediction for the images of ``rows``.
        rows: the rows of the image table.
        subset: "train", "validation" or "test".
    """
    known = rows[[*TABLE_COLUMNS, "label"]].reset_index(drop=True)
    table = pd.concat([known.assign(subset=subset), to_table(classifier, prediction)], axis=1)
    if len(classifier.classes) == 2:
        table["probability"] = table.pop(f"probability_{classifier.classes[1]}")
        table = table.drop(columns=f"probability_{classifier.classes[0]}")
    return table
