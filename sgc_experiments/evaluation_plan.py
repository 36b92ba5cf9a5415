"""Where to spend network evaluations: the noise levels that tell the classes apart.

Evidence about the class sits in a band of log-SNRs. Outside it both classes denoise alike, and the
differences of their errors are noise. The band is chosen on validation images, and on training
images where those are few, from many draws over all levels: the widest one that they show to be
hardly worse than the best one, each with as many draws as a prediction has. Taking the best itself
would follow the noise of a few hundred images.
"""

import math
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.likelihood import Draws, make_draws
from sgc_experiments.noise_levels import LogSNRDensity

_EDGES = 15  # candidate ends of a band
_NARROWEST = 2.0  # units of log-SNR
_HARDLY = 0.5  # standard errors
_FEWEST_DRAWS, _MOST_DRAWS = 64, 128  # to choose from; more would take too long


@dataclass(frozen=True)
class EvaluationPlan:
    """How log-odds are estimated; stored with the model.

    Attributes:
        log_snr_min: Lower end of the band of noise levels.
        log_snr_max: Upper end.
        draws: Noise draws per class.
        symmetries: Symmetries of the square, dealt out over the draws.
    """

    log_snr_min: float
    log_snr_max: float
    draws: int
    symmetries: tuple[int, ...] = (0,)

    def make_draws(self, image_size: int, *, draws: int, seed: int = 0) -> Draws:
        """Draws for images (1, S, S)."""
        return make_draws(
            (1, image_size, image_size),
            LogSNRDensity.uniform(self.log_snr_min, self.log_snr_max),
            draws,
            seed=seed,
            symmetries=self.symmetries,
        )

    def as_dict(self) -> dict[str, float | int | bool | list[int]]:
        """JSON-able; the arguments that make the same plan."""
        return asdict(self) | {"symmetries": list(self.symmetries)}


def planning_draws(draws: int, width: float) -> int:
    """How many draws over all levels a band is chosen from.

    Args:
        draws: How many a prediction has: the narrowest band should hold as many.
        width: Of all levels, in units of log-SNR.
    """
    return min(_MOST_DRAWS, max(_FEWEST_DRAWS, math.ceil(draws * width / _NARROWEST)))


def choose_band(
    errors: Tensor, log_snr: Tensor, labels: np.ndarray, low: float, high: float, *, draws: int
) -> tuple[float, float]:
    """The widest band [a, b] within [low, high] that separates the classes about as well as any.

    Args:
        errors: Squared errors of images, (N, K, C), from `likelihood.squared_errors`.
        log_snr: Of the K draws, which cover [low, high] evenly, stratum by stratum.
        labels: int64 (N,).
        low: Lower end of the levels that the network knows.
        high: Upper end.
        draws: How many a prediction has.

    Returns:
        The ends of the band; the whole range if it is too narrow to choose from, or fewer than two
        classes have images.
    """
    if high - low < _NARROWEST or len(np.unique(labels)) < 2:
        return low, high
    edges = np.linspace(low, high, _EDGES)
    bands, found = [], []
    for start in edges:
        for end in edges[edges >= start + _NARROWEST - 1e-9]:
            inside = torch.nonzero((log_snr >= start) & (log_snr <= end))[:, 0]
            # As many predictions as the draws inside suffice for, each spread over the band.
            repeats = max(1, len(inside) // draws)
            scores = [-errors[:, inside[r::repeats]].sum(1).numpy() for r in range(repeats)]
            bands.append((float(start), float(end)))
            found.append(np.mean([_placements(part, labels) for part in scores], axis=0))
    auc = np.array([_over_classes(placements, labels) for placements in found])
    best = int(auc.argmax())
    equal = [
        k
        for k in range(len(bands))
        if auc[best] - auc[k] <= _HARDLY * _standard_error(found[best] - found[k], labels)
    ]
    # Of equally wide ones the better.
    return bands[max(equal, key=lambda k: (round(bands[k][1] - bands[k][0], 6), auc[k]))]


def _placements(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each image the share of the other classes' images that it is told from, (N,).

    It is the mean over those classes. The mean over the images of a class, and of that over the
    classes, is the mean AUC of all pairs of classes. With two, these are the placements of
    DeLong et al., Biometrics 44(3), 1988.
    """
    shares = np.zeros(len(labels))
    classes = np.unique(labels)
    for first, second in combinations(classes, 2):
        one, other = labels == first, labels == second
        difference = scores[:, second] - scores[:, first]
        greater = (np.sign(difference[other][:, None] - difference[one][None]) + 1) / 2
        shares[other] += greater.mean(1)
        shares[one] += greater.mean(0)
    return shares / (len(classes) - 1)


def _over_classes(placements: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of their images' mean `_placements`."""
    return float(np.mean([placements[labels == c].mean() for c in np.unique(labels)]))


def _standard_error(difference: np.ndarray, labels: np.ndarray) -> float:
    """Of the difference of two mean AUCs over the same images, from that of their `_placements`.

    An image stands in as many pairs of classes as there are other classes, and its placements there
    go up and down together: their mean is one term, and the terms of different images are
    independent. To first order the mean AUC varies twice as much as the mean over the classes of
    their placements' means: an image counts in its own class's mean and in those it is told from.
    """
    classes = np.unique(labels)
    parts = [difference[labels == c] for c in classes]
    if min(map(len, parts)) < 2:
        return math.inf
    variance = sum(part.var(ddof=1) / len(part) for part in parts)
    return 2 / len(classes) * math.sqrt(variance)


def mean_pairwise_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUC of score differences, averaged over the pairs of classes that have images.

    Args:
        scores: (N, C), larger where class c is more likely.
        labels: int64 (N,).

    Returns:
        Between 0 and 1; NaN if no pair can be compared.
    """
    if len(np.unique(labels)) < 2:
        return math.nan
    return _over_classes(_placements(scores, labels), labels)
