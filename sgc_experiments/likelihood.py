"""log p(x|c) from a class-conditional denoiser: the evidence lower bound.

With z = α x + σ ε and ε̂_c = ε̂(z, λ, c), the variational bound of a diffusion model is

    −log p(x|c) ≤ KL(q(z_λmin | x) ‖ N(0, I)) + E[−log p(x | z_λmax)]
                  + ½ ∫ E_ε ‖ε − ε̂_c‖² dλ                              over [λmin, λmax],

where x | z_λmax is N(z / α, e^{−λmax} I), whose expected negative log-density is
½ D (1 + log 2π − λmax). Only the integral depends on c, so that the log-odds of two classes are

    log p(x|c) / p(x|0) ≈ ½ ∫ E_ε [‖ε − ε̂_0‖² − ‖ε − ε̂_c‖²] dλ.

All classes see the same (λ, ε): the noise common to both errors, which is most of it, cancels.
The draws (λ_k, ε_k) depend on the seed and on k, never on the image or on the batch.

Reference: Kingma et al., Variational Diffusion Models, arXiv:2107.00630, equations 11-17.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sgc_experiments.augmentation import apply_symmetry, undo_symmetry
from sgc_experiments.noise_levels import LogSNRDensity, stratified_uniforms
from sgc_experiments.score_network import alpha_sigma, repeat


class Denoiser(Protocol):
    """What an estimator asks of a network: ε̂ in variance-preserving coordinates."""

    classes: int

    def __call__(self, z: Tensor, log_snr: Tensor, classes: Tensor) -> Tensor:
        """ε̂ (B, ...) for z (B, ...), λ (B,), classes int64 (B,)."""
        ...

    def all_classes(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """ε̂ (B, C, ...) of every class at the same z and λ."""
        ...


@dataclass(frozen=True)
class Draws:
    """Noise levels and noises at which images are denoised, and how they are averaged.

    Attributes:
        log_snr: λ_k, float64 (K,).
        noise: ε_k, (K, ...) of the image's shape.
        weight: Factor of draw k in the estimate Σ_k weight_k · h(λ_k, ε_k), float64 (K,).
        stratum: Draws of one stratum are alike in distribution, int64 (K,), ascending from 0.
        antithetic: Draws 2j and 2j + 1 share λ and have opposite noise.
        symmetry: `augmentation.apply_symmetry` code that draw k applies to the image.
    """

    log_snr: Tensor
    noise: Tensor
    weight: Tensor
    stratum: Tensor
    antithetic: bool
    symmetry: tuple[int, ...]

    def __len__(self) -> int:
        return self.log_snr.numel()


@dataclass(frozen=True)
class LikelihoodEstimate:
    """Estimates for N images and C classes.

    Attributes:
        log_likelihood: log p(x|c) in nats in the coordinates of the images given, float64 (N, C);
            a lower bound in expectation if it comes from the ELBO.
        standard_error: Of each log-likelihood, float64 (N, C); NaN if it cannot be told.
        log_odds: log p(x|c) − log p(x|0), float64 (N, C); column 0 is 0.
        log_odds_error: Standard error of the log-odds, float64 (N, C).
        evaluations: Network evaluations per image, all classes together, float64 (N,).
    """

    log_likelihood: Tensor
    standard_error: Tensor
    log_odds: Tensor
    log_odds_error: Tensor
    evaluations: Tensor


def make_draws(
    shape: Sequence[int],
    density: LogSNRDensity,
    count: int,
    *,
    seed: int = 0,
    stratified: bool = True,
    antithetic: bool = False,
    symmetries: Sequence[int] = (0,),
) -> Draws:
    """Draws for an unbiased estimate of ∫ E_ε h(λ, ε) dλ over the range of `density`.

    Args:
        shape: Of one image.
        density: q(λ) that the levels are drawn from; draw k weighs 1 / (q(λ_k) · count).
        count: Number of draws K; even if `antithetic`.
        seed: Draw k depends on `seed`, `count` and k only.
        stratified: Levels fill equally probable strata, two of them per stratum, so that their
            spread inside the strata tells the standard error.
        antithetic: Draws come in pairs (λ, ε), (λ, −ε).
        symmetries: Symmetries of the square, dealt out at random, each to as many draws.

    Raises:
        ValueError: `count` is not positive, or odd with `antithetic`.
    """
    if count < 1 or (antithetic and count % 2):
        raise ValueError(f"count must be positive, and even if antithetic, not {count}")
    units = count // 2 if antithetic else count
    strata = max(1, units // 2) if stratified else 1
    generator = torch.Generator().manual_seed(seed)
    log_snr = density.quantile(stratified_uniforms(units, strata, generator))
    noise = torch.randn(units, *shape, generator=generator)
    stratum = torch.arange(units) * strata // units
    # A stratum holds probability 1 / strata however many units fell into it.
    weight = 1 / (density.density(log_snr) * strata * stratum.bincount()[stratum])
    # Not in turns, in which each would see its own strata only.
    dealt = torch.randperm(units, generator=generator).tolist()
    symmetry = [symmetries[k % len(symmetries)] for k in dealt]
    if antithetic:
        noise = torch.stack([noise, -noise], 1).flatten(0, 1)
        log_snr, weight, stratum = repeat(log_snr, 2), repeat(weight, 2) / 2, repeat(stratum, 2)
        symmetry = [code for code in symmetry for _ in range(2)]
    return Draws(log_snr, noise, weight, stratum, antithetic, tuple(symmetry))


@torch.no_grad()
def squared_errors(
    denoiser: Denoiser, images: Tensor, draws: Draws, *, batch_size: int = 512
) -> Tensor:
    """‖ε_k − ε̂_c‖² of each image, draw and class; float64 (N, K, C) on the CPU.

    Images are (N, ...) in the coordinates of the denoiser. At most `batch_size` network
    evaluations are made at once (but never fewer than one per class), which bounds the memory.
    """
    errors = torch.empty(len(images), len(draws), denoiser.classes, dtype=torch.float64)
    for rows, columns in _blocks(len(images), len(draws), batch_size // denoiser.classes):
        residual = _residuals(denoiser, images[rows], draws, columns)
        errors[rows, columns] = residual.flatten(3).square().sum(3, dtype=torch.float64).cpu()
    return errors


@torch.no_grad()
def error_maps(
    denoiser: Denoiser, images: Tensor, draws: Draws, *, batch_size: int = 512
) -> Tensor:
    """½ Σ_k weight_k (ε_k − ε̂_c)² per pixel, in the image's own orientation.

    The difference of two classes' maps is a map of evidence whose sum is the log-odds of `elbo`.

    Args:
        denoiser: As for `squared_errors`.
        images: (N, 1, S, S).
        draws: From `make_draws`.
        batch_size: Network evaluations at once.

    Returns:
        Float64 (N, C, S, S) on the CPU.
    """
    side = images.shape[-1]
    maps = torch.zeros(len(images), denoiser.classes, side, side, dtype=torch.float64)
    for rows, columns in _blocks(len(images), len(draws), batch_size // denoiser.classes):
        squares = _residuals(denoiser, images[rows], draws, columns).double().square()[:, :, :, 0]
        for place, k in enumerate(range(columns.start, columns.stop)):
            upright = undo_symmetry(squares[:, place].cpu(), draws.symmetry[k])
            maps[rows] += 0.5 * draws.weight[k] * upright
    return maps


def _blocks(images: int, draws: int, limit: int) -> list[tuple[slice, slice]]:
    """Rectangles that cover (images, draws) with at most max(1, limit) cells each."""
    columns = min(draws, max(1, limit))
    rows = max(1, limit // columns)
    return [
        (slice(i, min(i + rows, images)), slice(k, min(k + columns, draws)))
        for i in range(0, images, rows)
        for k in range(0, draws, columns)
    ]


def _residuals(denoiser: Denoiser, images: Tensor, draws: Draws, columns: slice) -> Tensor:
    """ε_k − ε̂_c for every image and class and the draws `columns`; (N, K, C, ...)."""
    count = columns.stop - columns.start
    codes = draws.symmetry[columns]
    x = torch.stack([apply_symmetry(images, code) for code in codes], 1).flatten(0, 1)
    noise = draws.noise[columns].to(x).repeat(len(images), *[1] * (images.dim() - 1))
    log_snr = draws.log_snr[columns].to(x.device).repeat(len(images))
    alpha, sigma = alpha_sigma(log_snr, x)
    eps = denoiser.all_classes(alpha * x + sigma * noise, log_snr)
    residuals = noise.unsqueeze(1) - eps.to(noise.dtype)
    return residuals.reshape(len(images), count, *residuals.shape[1:])


def log_odds_from_errors(errors: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Log-odds against class 0 and their standard errors, both (N, C), from `squared_errors`."""
    differences = 0.5 * (errors[..., :1] - errors)
    return _weighted_sum(differences, draws)


def elbo(
    denoiser: Denoiser, images: Tensor, draws: Draws, *, batch_size: int = 512
) -> LikelihoodEstimate:
    """Evidence lower bound of log p(x|c), paired over classes.

    Args:
        denoiser: Network in variance-preserving coordinates.
        images: (N, ...) in the denoiser's coordinates (standardised).
        draws: From `make_draws`; the range of its density is [λmin, λmax]. The bound is tight only
            if that range reaches from pure noise to noise far below the finest detail. Log-odds
            need only the levels at which the classes differ.
        batch_size: Network evaluations at once.
    """
    errors = squared_errors(denoiser, images, draws, batch_size=batch_size)
    integral, standard_error = _weighted_sum(0.5 * errors, draws)
    log_odds, log_odds_error = log_odds_from_errors(errors, draws)
    return LikelihoodEstimate(
        log_likelihood=-integral,
        standard_error=standard_error,
        log_odds=log_odds,
        log_odds_error=log_odds_error,
        evaluations=torch.full((len(images),), len(draws) * denoiser.classes, dtype=torch.float64),
    )


def elbo_end_terms(images: Tensor, log_snr_min: float, log_snr_max: float) -> Tensor:
    """The terms of the bound that no class changes, to be added to `elbo`; nats, float64 (N,).

    Prior and reconstruction: −KL(q(z_λmin | x) ‖ N(0, I)) + E log N(x; z / α, e^{−λmax} I).
    """
    x = images.double().flatten(1)
    alpha2, sigma2 = 1 / (1 + math.exp(-log_snr_min)), 1 / (1 + math.exp(log_snr_min))
    prior = 0.5 * (alpha2 * x.square() + sigma2 - 1 - math.log(sigma2)).sum(1)
    return -prior - 0.5 * x.shape[1] * (1 + math.log(2 * math.pi) - log_snr_max)


def bits_per_dim(log_likelihood: Tensor, dimensions: int, bin_width: float) -> Tensor:
    """Bits per pixel of images of whole numbers, from the density of the dequantised image.

    An image of integers plus uniform noise has a density whose mean log is at most the log of the
    integer image's probability (Theis et al., arXiv:1511.01844). Scaling it so that neighbouring
    integers lie `bin_width` apart changes that density by bin_width per pixel.

    Args:
        log_likelihood: Log-density in nats of the scaled, dequantised image.
        dimensions: Pixels D.
        bin_width: Distance of neighbouring grey values in the coordinates of that density.
    """
    return -(log_likelihood / dimensions + math.log(bin_width)) / math.log(2)


def _weighted_sum(values: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Σ_k weight_k values[:, k] and its standard error; values are (N, K, C), results (N, C).

    The variance of a stratum's mean is estimated from the units inside it, pairs of antithetic
    draws being one unit. A stratum with a single unit leaves the error unknown (NaN).
    """
    terms = draws.weight[:, None] * values
    stratum = draws.stratum
    if draws.antithetic:
        terms = terms.reshape(len(terms), terms.shape[1] // 2, 2, *terms.shape[2:]).sum(2)
        stratum = stratum[::2]
    sizes = stratum.bincount()
    if sizes.min() < 2:
        return terms.sum(1), torch.full_like(terms[:, 0], math.nan)
    sums = torch.zeros(len(terms), len(sizes), terms.shape[2], dtype=terms.dtype)
    means = sums.index_add(1, stratum, terms) / sizes[:, None]
    spread = (terms - means[:, stratum]).square()
    variance = sums.index_add(1, stratum, spread) * (sizes / (sizes - 1))[:, None]
    return terms.sum(1), variance.sum(1).sqrt()
