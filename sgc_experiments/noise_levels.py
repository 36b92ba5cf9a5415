"""Sampling densities over the log-SNR λ, shared by training and likelihood estimation.

An integral over noise levels, ∫ h(λ) dλ, is estimated by the mean of h(λ_k) / q(λ_k) with λ_k ~ q:
unbiased for every density q that covers the range, with the least variance for q ∝ √E h².
Stratification draws one λ from each of n equally probable slices of q.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLINGS = ("uniform", "stratified", "importance")


class LogSNRDensity:
    """A piecewise-constant density q(λ).

    Args:
        edges: Ends of the bins, strictly increasing, finite; n + 1 numbers.
        masses: Weights of the n bins, positive, of any sum.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, edges: Sequence[float] | Tensor, masses: Sequence[float] | Tensor) -> None:
        self.edges = torch.as_tensor(edges, dtype=torch.float64)
        masses = torch.as_tensor(masses, dtype=torch.float64)
        if self.edges.numel() != masses.numel() + 1 or masses.numel() < 1:
            raise ValueError("edges must hold one number more than masses")
        if not self.edges.isfinite().all() or not (self.edges.diff() > 0).all():
            raise ValueError("edges must be finite and strictly increasing")
        if not (masses.isfinite().all() and (masses > 0).all()):
            raise ValueError("masses must be finite and positive")
        self.masses = masses / masses.sum()
        self._cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), self.masses.cumsum(0)])

    @classmethod
    def uniform(cls, low: float, high: float) -> "LogSNRDensity":
        """The uniform density on [low, high]."""
        return cls([low, high], [1.0])

    @property
    def low(self) -> float:
        """Lower end of the range."""
        return float(self.edges[0])

    @property
    def high(self) -> float:
        """Upper end of the range."""
        return float(self.edges[-1])

    def quantile(self, probability: Tensor) -> Tensor:
        """λ at which the cumulative probability, in [0, 1], is reached; float64, same shape."""
        probability = probability.double().cpu()
        index = self._bin(self._cumulative, probability)
        share = (probability - self._cumulative[index]) / self.masses[index]
        return self.edges[index] + share.clamp(0, 1) * self.edges.diff()[index]

    def density(self, log_snr: Tensor) -> Tensor:
        """q(λ) per unit of log-SNR, for λ inside the range; float64, same shape."""
        return (self.masses / self.edges.diff())[self.bin(log_snr)]

    def bin(self, log_snr: Tensor) -> Tensor:
        """Index of the bin of each λ; int64, same shape."""
        return self._bin(self.edges, log_snr.double().cpu())

    @staticmethod
    def _bin(edges: Tensor, values: Tensor) -> Tensor:
        index = torch.searchsorted(edges, values.contiguous(), right=True) - 1
        return index.clamp(0, edges.numel() - 2)


def stratified_uniforms(count: int, strata: int, generator: torch.Generator) -> Tensor:
    """`count` float64 numbers in [0, 1), spread over `strata` equal slices, slice by slice.

    Slice s gets the numbers k with k · strata // count == s, so that each number is uniform in its
    slice and slices differ by at most one in how many they get.
    """
    slices = torch.arange(count) * strata // count
    jitter = torch.rand(
        count, generator=generator, dtype=torch.float64, device=generator.device
    ).cpu()
    return (slices + jitter) / strata
