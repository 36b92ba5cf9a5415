"""``likelihood``: a fitted generative classifier that takes log p(x|c) from another estimator.

Evidence of the bound in a band of noise levels and evidence of the flow over all levels differ by a
factor and an offset. So the temperature, and the thresholds, are chosen anew on the patients that
they were chosen on in training; without those images there is no honest answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from sgc_experiments.calibration import fit_calibration
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.data import ImageDataset
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.fitted import FittedModel
from sgc_experiments.experiments.scoring import prediction_table


def use_likelihood(
    model: FittedModel, likelihood: str, dataset: ImageDataset, manifest: pd.DataFrame
) -> pd.DataFrame:
    """Change the estimator of a model, calibrate it, and predict the validation images.

    Args:
        model: its classifier is changed.
        likelihood: "elbo" or "ode".
        dataset: the one that the model was fitted on.
        manifest: the split that it was fitted on.

    Returns:
        The table of ``prediction_table`` for the validation images.

    Raises:
        UserError: the model is not generative, or the dataset lacks its validation patients.
    """
    classifier = model.classifier
    if not isinstance(classifier, ScoreBasedClassifier):
        raise UserError(
            f"likelihood={likelihood} is for generative models (sgc), not {model.name}."
        )
    patients = manifest.loc[manifest["subset"] == "validation", "patient"]
    rows = np.flatnonzero(dataset.table["patient"].isin(patients))
    if dataset.name != model.facts["dataset"] or not len(rows):
        raise UserError(
            f"likelihood={likelihood} is not what the model was fitted with, and has to be "
            "calibrated on its validation patients, who are not in this dataset: leave likelihood "
            f"out, or train with likelihood={likelihood}."
        )
    images = np.asarray(dataset.images[rows])
    labels = dataset.table["label"].to_numpy(np.int64)[rows]
    classifier.settings = replace(classifier.settings, likelihood=likelihood)
    log_odds = classifier.predict_log_odds(images).log_odds
    classifier.calibration = fit_calibration(log_odds, labels)
    return prediction_table(classifier, images, dataset.table.iloc[rows])
