"""What a fitted classifier says of images, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

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
    prediction: Prediction | None = None,
) -> pd.DataFrame:
    """Classify prepared images.

    Args:
        classifier: a fitted classifier.
        images: (N, S, S) uint16.
        prior: share of each class where the images come from; None: as in training.
        evaluations: of the network per image, by a generative classifier; None: as in training.
        seed: of a generative classifier's noise.
        prediction: of these images, if it has been made.

    Returns:
        One row per image: ``probability_<class>`` for each class; for two classes, the calibrated
        ``log_odds`` of the second with its ``standard_error`` (for more, ``log_odds_<class>`` of
        each against the first, with ``standard_error_<class>``); where the model can tell,
        ``out_of_distribution``; and ``abstain``, whether the answer had better not be used (see
        ``uncertainty.py``).

    Raises:
        UserError: ``evaluations`` for a model that draws nothing.
    """
    if prediction is None:
        prediction = _predict(classifier, images, evaluations, seed)
    posterior = classifier.posterior(prediction.log_odds, prior)
    shares = classifier.prior if prior is None else prior
    logits = classifier.calibration.logits(prediction.log_odds, shares)
    columns: dict[str, Any] = {
        f"probability_{name}": posterior[:, index] for index, name in enumerate(classifier.classes)
    }
    for index, name in enumerate(classifier.classes[1:], start=1):
        ending = f"_{name}" if len(classifier.classes) > 2 else ""
        # Not from the posterior, which rounds to 0 and 1 where the log-odds still rank.
        columns[f"log_odds{ending}"] = logits[:, index] - logits[:, 0]
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
        if evaluations is not None and classifier.settings.likelihood == "ode":
            raise UserError(
                "This model integrates the probability flow, in steps that it was fitted with; "
                "evaluations are those of likelihood=elbo."
            )
        return classifier.predict_log_odds(images, evaluations=evaluations, seed=seed)
    if evaluations is not None:
        raise UserError("This model draws nothing that evaluations could be the number of.")
    return classifier.predict_log_odds(images)


def with_prevalence(
    table: pd.DataFrame, classes: Sequence[str], old: np.ndarray, new: np.ndarray
) -> pd.DataFrame:
    """Answers for another prevalence than the one that they hold for.

    Args:
        table: of ``answer`` or ``prediction_table``.
        classes: names of the classes.
        old: share of each class that the answers hold for.
        new: the one wanted.
    """
    names = ["log_odds"] if len(classes) == 2 else [f"log_odds_{name}" for name in classes[1:]]
    change = np.log(new) - np.log(old)
    log_odds = table[names].to_numpy(np.float64) + (change[1:] - change[0])
    posterior = softmax(np.column_stack([np.zeros(len(table)), log_odds]), axis=1)
    changed = dict(zip(names, log_odds.T, strict=True))
    for index, name in enumerate(classes):
        if (column := f"probability_{name}") in table:
            changed[column] = posterior[:, index]
    if "probability" in table:
        changed["probability"] = posterior[:, 1]
    return table.assign(**changed)


def before_calibration(table: pd.DataFrame, classifier: Classifier) -> pd.DataFrame | None:
    """What the classifier would have said without its temperature and offset.

    Args:
        table: of ``prediction_table``, for the prevalence of training.
        classifier: that made it.

    Returns:
        The table with other probabilities and log-odds; None for more than two classes.
    """
    if len(classifier.classes) > 2:
        return None
    calibration = classifier.calibration
    prevalence = np.log(classifier.prior[1] / classifier.prior[0])
    evidence = table["log_odds"].to_numpy(np.float64) - prevalence - calibration.offset[1]
    log_odds = evidence * calibration.temperature + prevalence
    return table.assign(
        log_odds=log_odds,
        probability=expit(log_odds),
        standard_error=table["standard_error"] * calibration.temperature,
    )


def posterior_of(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """The probabilities (N, C) of a table of ``answer`` or ``prediction_table``."""
    if "probability" in table:
        positive = table["probability"].to_numpy(np.float64)
        return np.column_stack([1 - positive, positive])
    several: np.ndarray = table[[f"probability_{name}" for name in classes]].to_numpy(np.float64)
    return several


def prediction_table(
    classifier: Classifier,
    images: np.ndarray,
    rows: pd.DataFrame,
    prediction: Prediction | None = None,
) -> pd.DataFrame:
    """Predictions beside what is known of the images: the table of ``predictions.py``.

    Args:
        classifier: a fitted classifier.
        images: (N, S, S) uint16.
        rows: the images' rows of the image table.
        prediction: of these images, if it has been made.
    """
    known = rows[TABLE_COLUMNS].reset_index(drop=True)
    table = pd.concat([known, answer(classifier, images, prediction=prediction)], axis=1)
    if len(classifier.classes) == 2:
        benign, malignant = (f"probability_{name}" for name in classifier.classes)
        table = table.drop(columns=benign).rename(columns={malignant: "probability"})
    return table
