"""When a classifier had better not answer.

Two things make an answer worthless: an image unlike all that the model was fitted on (see
`typicality`), and evidence that the noise of its own estimate could turn around. The evidence is
the calibrated log-odds without the prior, log_odds / T + b; its sign is in doubt while

    |log_odds / T + b| < z · standard error / T,

a z-test on the paired differences of the classes' errors.
"""

import numpy as np

from sgc_experiments.calibration import Calibration
from sgc_experiments.protocol import Prediction

DOUBT_Z = 1.0  # standard errors


def in_doubt(
    log_odds: np.ndarray, standard_error: np.ndarray, calibration: Calibration, z: float = DOUBT_Z
) -> np.ndarray:
    """Whether noise may have decided which class the evidence favours, bool (N,).

    Args:
        log_odds: (N, C), before calibration.
        standard_error: (N, C); NaN, which is unknown, raises no doubt.
        calibration: Of the model.
        z: Standard errors that the best class must be ahead of the next one.
    """
    scores = log_odds / calibration.temperature + calibration.offset
    order = np.argsort(scores, axis=1)
    best, second = order[:, -1:], order[:, -2:-1]
    lead = np.take_along_axis(scores, best, 1) - np.take_along_axis(scores, second, 1)
    # Errors are known against class 0, whose own is 0; two others' differ by less than this.
    errors = [np.take_along_axis(standard_error, c, 1) for c in (best, second)]
    doubtful: np.ndarray = (lead < z * np.hypot(*errors) / calibration.temperature)[:, 0]
    return doubtful


def abstains(prediction: Prediction, calibration: Calibration) -> np.ndarray:
    """Whether an image had better be left to others, bool (N,)."""
    doubt = in_doubt(prediction.log_odds, prediction.standard_error, calibration)
    if prediction.out_of_distribution is None:
        return doubt
    either: np.ndarray = doubt | prediction.out_of_distribution
    return either
