"""Evidence for images: a fixed number of draws, as many as each image needs, or the flow's.

Sequentially, every image gets the plan's draws, and then as many again, round after round, while
the sign of its evidence is in doubt and the budget lasts. After r rounds of independent draws the
estimate is their mean, with standard error √(Σ_i s_i²) / r, and it is in doubt while

    |log_odds / T + b| < z · standard error / T                               (see `uncertainty`).

Testing again and again at the same z errs more often than one test at that z would, and images that
stop early by luck keep their estimate: z = 2 to 3 leaves few of either (Wald 1945).
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sgc_experiments.batches import evenly_spaced
from sgc_experiments.calibration import Calibration
from sgc_experiments.evaluation_plan import EvaluationPlan
from sgc_experiments.evidence import flow_log_odds, image_errors, shared_image_errors
from sgc_experiments.likelihood import Draws, log_odds_from_errors
from sgc_experiments.probability_flow import OdeSettings
from sgc_experiments.protocol import Prediction
from sgc_experiments.score_network import ScoreNetwork
from sgc_experiments.sde import SDE
from sgc_experiments.typicality import BANDS, TypicalSet, features
from sgc_experiments.uncertainty import in_doubt

_TYPICAL_IMAGES = 256


def predict(
    network: ScoreNetwork,
    images: np.ndarray,
    draws: Draws,
    *,
    prior: np.ndarray,
    typical: TypicalSet | None,
) -> Prediction:
    """Evidence from the same draws for every image.

    Args:
        network: In evaluation mode.
        images: uint16 (N, S, S).
        draws: For images (1, S, S).
        prior: π, (C,).
        typical: Tells which images are foreign, if the draws allow.
    """
    errors = image_errors(network, images, draws)
    log_odds, standard_error = log_odds_from_errors(errors, draws)
    return Prediction(
        log_odds=log_odds.numpy(),
        standard_error=standard_error.numpy(),
        evaluations=float(len(draws) * network.classes),
        out_of_distribution=_foreign(images, errors, draws, prior, typical),
    )


def predict_sequentially(
    network: ScoreNetwork,
    images: np.ndarray,
    rounds: Sequence[Draws],
    *,
    prior: np.ndarray,
    typical: TypicalSet | None,
    calibration: Calibration,
    z: float,
) -> Prediction:
    """Evidence from one round of draws after another, while an image is in doubt.

    Args:
        network: In evaluation mode.
        images: uint16 (N, S, S).
        rounds: Independent draws; the first one is for every image.
        prior: π, (C,).
        typical: Tells which images are foreign, by the first round.
        calibration: Tells where the evidence favours no class.
        z: Standard errors that the evidence must lie away from there.

    Returns:
        `evaluations` is the mean over the images.
    """
    first = predict(network, images, rounds[0], prior=prior, typical=typical)
    total, variance = first.log_odds.copy(), first.standard_error**2
    count = np.ones((len(images), 1))
    for draws in rounds[1:]:
        doubtful = in_doubt(total / count, np.sqrt(variance) / count, calibration, z)
        open_ = np.flatnonzero(doubtful & (count[:, 0] == count.max(initial=1)))
        if not len(open_):
            break
        errors = image_errors(network, images[open_], draws)
        log_odds, standard_error = log_odds_from_errors(errors, draws)
        total[open_] += log_odds.numpy()
        variance[open_] += standard_error.numpy() ** 2
        count[open_] += 1
    mean = float(count.mean()) if len(images) else 1.0
    return Prediction(
        log_odds=total / count,
        standard_error=np.sqrt(variance) / count,
        evaluations=first.evaluations * mean,
        out_of_distribution=first.out_of_distribution,
    )


def predict_by_flow(
    network: ScoreNetwork,
    sde: SDE,
    images: np.ndarray,
    draws: Draws,
    *,
    settings: OdeSettings,
    prior: np.ndarray,
    typical: TypicalSet | None,
) -> Prediction:
    """Evidence from the probability-flow ODE.

    Args:
        network: In evaluation mode.
        sde: Whose flow is followed.
        images: uint16 (N, S, S).
        draws: By which an image is told to be foreign; not used, nor counted, without `typical`.
        settings: Of the flow.
        prior: π, (C,).
        typical: Tells which images are foreign, if the draws allow.
    """
    log_odds, standard_error, evaluations = flow_log_odds(network, sde, images, settings)
    foreign = None
    if typical is not None:
        errors = image_errors(network, images, draws)
        foreign = _foreign(images, errors, draws, prior, typical)
        evaluations += len(draws) * network.classes
    return Prediction(log_odds, standard_error, evaluations, foreign)


def make_rounds(plan: EvaluationPlan, image_size: int, draws: int, seed: int) -> list[Draws]:
    """Rounds of the plan's draws, `draws` in all (at least one round); seeds follow `seed`."""
    return [
        plan.make_draws(image_size, draws=plan.draws, seed=seed + 1_000_003 * turn)
        for turn in range(max(1, draws // plan.draws))
    ]


def _foreign(
    images: np.ndarray,
    errors: Tensor,
    draws: Draws,
    prior: np.ndarray,
    typical: TypicalSet | None,
) -> np.ndarray | None:
    if typical is None:
        return None
    values = features(
        images, errors, draws, prior, low=typical.low, high=typical.high, bands=typical.bands
    )
    return None if values is None else typical.distance(values) > typical.threshold


def find_typical(
    network: ScoreNetwork,
    plan: EvaluationPlan,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    prior: np.ndarray,
) -> TypicalSet | None:
    """The typical set of the training images under the plan's own draws; see `TypicalSet.fit`."""
    some = evenly_spaced(len(train), _TYPICAL_IMAGES)
    draws = plan.make_draws(train.shape[-1], draws=plan.draws)
    low, high = plan.log_snr_min, plan.log_snr_max
    bands = max(1, min(BANDS, len(draws) // 2))
    values = [
        features(
            images, shared_image_errors(network, images, draws), draws, prior,
            low=low, high=high, bands=bands,
        )
        for images in (train[some], validation)
    ]  # fmt: skip
    if values[0] is None or values[1] is None:
        return None
    return TypicalSet.fit(values[0], values[1], low, high)
