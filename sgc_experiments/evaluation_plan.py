"""Where to spend network evaluations: the noise levels that tell the classes apart.

Evidence about the class sits in a band of log-SNRs. Outside it both classes denoise alike, and the
differences of their errors are noise. The band is chosen on validation images, from many draws over
all levels: the one whose evidence, normalised per class, is best separated.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.likelihood import Draws, make_draws
from sgc_experiments.noise_levels import LogSNRDensity

_EDGES = 15  # candidate ends of a band
_NARROWEST = 2.0  # units of log-SNR


@dataclass(frozen=True)
class EvaluationPlan:
    """How log-odds are estimated; stored with the model.

    Attributes:
        log_snr_min: Lower end of the band of noise levels.
        log_snr_max: Upper end.
        draws: Noise draws per class.
        symmetries: Symmetries of the square, taken in turns over the draws.
        antithetic: Whether draws come in pairs of opposite noise.
    """

    log_snr_min: float
    log_snr_max: float
    draws: int
    symmetries: tuple[int, ...] = (0,)
    antithetic: bool = False

    def make_draws(self, image_size: int, *, draws: int, seed: int = 0) -> Draws:
        """Draws for images (1, S, S)."""
        return make_draws(
            (1, image_size, image_size),
            LogSNRDensity.uniform(self.log_snr_min, self.log_snr_max),
            draws,
            seed=seed,
            antithetic=self.antithetic,
            symmetries=self.symmetries,
        )

    def as_dict(self) -> dict[str, float | int | bool | list[int]]:
        """JSON-able; the arguments that make the same plan."""
        return asdict(self) | {"symmetries": list(self.symmetries)}


def choose_band(
    errors: Tensor, log_snr: Tensor, labels: np.ndarray, low: float, high: float
) -> tuple[float, float]:
    """The band [a, b] within [low, high] whose evidence separates the classes best.

    Args:
        errors: Squared errors of validation images, (N, K, C), from `likelihood.squared_errors`.
        log_snr: Of the K draws, which cover [low, high] evenly.
        labels: int64 (N,).
        low: Lower end of the levels that the network knows.
        high: Upper end.

    Returns:
        The ends of the band; the whole range if fewer than two classes have images.
    """
    classes = errors.shape[2]
    best, band = -math.inf, (low, high)
    edges = np.linspace(low, high, _EDGES)
    for start in edges:
        for end in edges[edges >= start + _NARROWEST - 1e-9]:
            inside = (log_snr >= start) & (log_snr <= end)
            score = mean_pairwise_auc(-errors[:, inside].sum(1).numpy(), labels, range(classes))
            # Of equally good bands the wider one, which averages more.
            score += 1e-4 * (end - start) / (high - low)
            if score > best:
                best, band = score, (float(start), float(end))
    return band


def mean_pairwise_auc(scores: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> float:
    """AUC of score differences, averaged over the pairs of classes that have images.

    Args:
        scores: (N, C), larger where class c is more likely.
        labels: int64 (N,).
        classes: Which to compare.

    Returns:
        Between 0 and 1; NaN if no pair can be compared.
    """
    values = []
    present = [c for c in classes if np.any(labels == c)]
    for place, first in enumerate(present):
        for second in present[place + 1 :]:
            pair = (labels == first) | (labels == second)
            difference = torch.as_tensor(scores[pair, second] - scores[pair, first])
            positive = torch.as_tensor(labels[pair] == second)
            greater = difference[positive][:, None] - difference[~positive][None]
            values.append(float((greater.sign() + 1).mean() / 2))
    return float(np.mean(values)) if values else math.nan
