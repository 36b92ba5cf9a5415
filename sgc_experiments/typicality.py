"""Whether an image is of the kind that a model was fitted on: the class-free likelihood, by band.

Evidence about the class means nothing for an image that no class explains. The class-free density
is p(x) = Σ_c π_c p(x|c), and its bound comes from the errors that the log-odds need anyway. A large
likelihood is no better a sign than a small one (an empty image is very likely), so an image is held
against the typical set of the training images, in both directions and at every scale:

    u_b(x) = log [−log Σ_c π_c exp(−½ Σ_{k∈b} w_k ‖ε_k − ε̂_c‖²)] − log ½ Σ_{k∈b} w_k ‖ε_k‖²

for B bands b of noise levels, beside the image's mean m and log s of its standard deviation, which
standardisation takes out of p(x) = p(x | m, s) p(m, s). A Gaussian is fitted to these B + 2 numbers
on training images; an image is out of distribution if its Mahalanobis distance exceeds what
validation images reach in one case of a hundred.

References: Nalisnick et al., typicality, arXiv:1906.02994; Mahmood et al., multiscale score
matching, arXiv:2010.13132; Lee et al., Mahalanobis distance, arXiv:1807.03888.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.batches import to_model_range
from sgc_experiments.likelihood import Draws

BANDS = 4
_Z = 2.326  # 99 % of validation images lie below the threshold
_FLAT = 1e-4  # standard deviation, in the range [−1, 1], below which an image is constant


@dataclass(frozen=True)
class TypicalSet:
    """The Gaussian of typical images; stored with the model.

    Attributes:
        low: Lower end of the noise levels.
        high: Upper end.
        mean: Of the features, (F,).
        covariance: Of the features, (F, F).
        threshold: Mahalanobis distance beyond which an image is out of distribution.
    """

    low: float
    high: float
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    threshold: float

    @classmethod
    def fit(cls, train: np.ndarray, validation: np.ndarray, low: float, high: float) -> Self | None:
        """Fit the Gaussian on training and the threshold on validation features.

        The threshold is the 99 % quantile of a log-normal, which a dozen validation images tell;
        where they are too few for that, the threshold is higher.

        Args:
            train: (N, F) from `features`.
            validation: (N', F).
            low: Lower end of the noise levels that the features were made of.
            high: Upper end.

        Returns:
            None if there are fewer than two images in either.
        """
        if min(len(train), len(validation)) < 2:
            return None
        covariance = np.cov(train, rowvar=False)
        # Few images do not tell how features go together.
        shrinkage = train.shape[1] / (train.shape[1] + len(train))
        variances = np.diag(np.maximum(np.diag(covariance), 1e-8))
        covariance = (1 - shrinkage) * covariance + shrinkage * variances
        rows = tuple(tuple(row) for row in covariance.tolist())
        found = cls(low, high, tuple(train.mean(0).tolist()), rows, math.inf)
        logs = np.log(found.distance(validation))
        margin = _Z * logs.std(ddof=1) * (1 + 4 / len(logs))
        return cls(low, high, found.mean, rows, float(np.exp(logs.mean() + margin)))

    @property
    def bands(self) -> int:
        """B, the number of bands of noise levels."""
        return len(self.mean) - 2

    def distance(self, values: np.ndarray) -> np.ndarray:
        """Mahalanobis distance (N,) of features (N, F)."""
        factor = np.linalg.cholesky(np.array(self.covariance))
        distance: np.ndarray = np.linalg.norm(
            np.linalg.solve(factor, (values - self.mean).T), axis=0
        )
        return distance

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict` after a passage through JSON."""
        rows = tuple(tuple(row) for row in stored["covariance"])
        return cls(**stored | {"mean": tuple(stored["mean"]), "covariance": rows})


def features(
    images: np.ndarray,
    errors: Tensor,
    draws: Draws,
    prior: np.ndarray,
    *,
    low: float,
    high: float,
    bands: int,
) -> np.ndarray | None:
    """The numbers that tell how typical an image is.

    Args:
        images: uint16 (N, S, S).
        errors: (N, K, C), from `likelihood.squared_errors`.
        draws: The K draws.
        prior: π, (C,).
        low: Lower end of the noise levels; they are cut into equal bands.
        high: Upper end.
        bands: B.

    Returns:
        (N, B + 2); None if a band holds no draw.
    """
    if len(images) == 0:
        return np.zeros((0, bands + 2))
    band = ((draws.log_snr - low) / (high - low) * bands).long().clamp(0, bands - 1)
    if not bool((band.bincount(minlength=bands) > 0).all()):
        return None
    nats = 0.5 * draws.weight[:, None] * errors
    noise = 0.5 * draws.weight * draws.noise.flatten(1).square().sum(1, dtype=torch.float64)
    log_prior = torch.as_tensor(np.log(prior))
    columns = []
    for b in range(bands):
        inside = band == b
        mixture = -torch.logsumexp(log_prior - nats[:, inside].sum(1), 1)
        columns.append(torch.log(mixture / noise[inside].sum()))
    # One after another: all of them in float64 may be more than memory holds.
    pixels = [to_model_range(image[None]).double() for image in images]
    spread = torch.stack([x.std(correction=0) for x in pixels]).clamp(min=_FLAT)
    columns += [torch.stack([x.mean() for x in pixels]), spread.log()]
    return torch.stack(columns, 1).numpy()
