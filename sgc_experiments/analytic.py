"""Classes with densities in closed form, whose denoisers and likelihoods are exact.

Class c is a mixture of M Gaussians, Σ_m w_m N(μ_m, Σ_m), in D dimensions. With z = αx + σε the
marginal of component m is N(αμ_m, α²Σ_m + σ²I), and

    E[ε | z, m] = σ (α²Σ_m + σ²I)⁻¹ (z − αμ_m),        ε̂(z, c) = Σ_m p(m | z, c) E[ε | z, m].

They are the truth that the estimators of `likelihood` are held to.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor


class GaussianMixtureClasses:
    """Denoiser and density of C classes, each a mixture of M Gaussians in D dimensions.

    All in float64. Fulfils `likelihood.Denoiser` for z of shape (B, D).

    Args:
        weights: (C, M), positive; normalised per class.
        means: (C, M, D).
        covariances: (C, M, D, D), symmetric, positive definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.classes, _, self.dimensions = means.shape
        self.log_weights = (weights / weights.sum(1, keepdim=True)).double().log()
        self.means = means.double()
        self.variances, self.axes = torch.linalg.eigh(covariances.double())
        if not (self.variances > 0).all():
            raise ValueError("covariances must be positive definite")

    @classmethod
    def gaussians(cls, means: Sequence[Tensor] | Tensor, covariances: Sequence[Tensor]) -> Self:
        """One Gaussian per class: means (C, D), covariances (C, D, D)."""
        centres, spreads = torch.stack(list(means)), torch.stack(list(covariances))
        return cls(torch.ones(len(centres), 1), centres[:, None], spreads[:, None])

    def _components(self, z: Tensor, log_snr: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Log w_m p(z | m, c), (B, M), and (α²Σ_m + σ²)⁻¹ (z − αμ_m), (B, M, D)."""
        alpha2 = torch.sigmoid(log_snr.double())[:, None, None]
        sigma2 = torch.sigmoid(-log_snr.double())[:, None, None]
        offset = z.double()[:, None] - alpha2.sqrt() * self.means[classes]
        variance = alpha2 * self.variances[classes] + sigma2
        axes = self.axes[classes]
        along = torch.einsum("bmij,bmi->bmj", axes, offset)
        log_density = -0.5 * (along.square() / variance + variance.log()).sum(2)
        log_density = log_density - 0.5 * self.dimensions * math.log(2 * math.pi)
        whitened = torch.einsum("bmij,bmj->bmi", axes, along / variance)
        return self.log_weights[classes] + log_density, whitened

    def __call__(self, z: Tensor, log_snr: Tensor, classes: Tensor) -> Tensor:
        """Exact ε̂, float64 (B, D), for z (B, D), λ (B,), classes int64 (B,)."""
        log_joint, whitened = self._components(z, log_snr, classes)
        responsibility = log_joint.softmax(1)
        mean = torch.einsum("bm,bmd->bd", responsibility, whitened)
        return torch.sigmoid(-log_snr.double()).sqrt()[:, None] * mean

    def all_classes(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Exact ε̂ of every class, float64 (B, C, D)."""
        every = [
            self(z, log_snr, torch.full((len(z),), c, dtype=torch.long))
            for c in range(self.classes)
        ]
        return torch.stack(every, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x|c) in nats, float64 (N, C), for x (N, D)."""
        noiseless = torch.full((len(x),), math.inf, dtype=torch.float64)
        every = [
            self._components(x, noiseless, torch.full((len(x),), c, dtype=torch.long))[0]
            for c in range(self.classes)
        ]
        return torch.stack([log_joint.logsumexp(1) for log_joint in every], 1)

    def sample(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """One x (N, D), float64, for each of `classes` (N,)."""
        component = torch.multinomial(
            self.log_weights.exp()[classes], 1, replacement=True, generator=generator
        )[:, 0]
        noise = torch.randn(len(classes), self.dimensions, generator=generator, dtype=torch.float64)
        along = noise * self.variances[classes, component].sqrt()
        axes = self.axes[classes, component]
        return self.means[classes, component] + torch.einsum("bij,bj->bi", axes, along)
