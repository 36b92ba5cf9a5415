"""From stored images to the errors that all evidence is made of, at the images' own scale.

The network works on standardised images; here uint16 images go in, in chunks that bound the memory
on the device, and float64 results on the CPU come out.

What classes are told apart by is computed in bfloat16 where that is faster: it changes log-odds by
less than a twentieth of their spread. Densities (the flow, bits per pixel) are not.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from sgc_experiments import ranks
from sgc_experiments.batches import chunks, to_model_range
from sgc_experiments.likelihood import (
    Draws,
    bits_per_dim,
    elbo,
    elbo_end_terms,
    error_maps,
    make_draws,
    squared_errors,
)
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.probability_flow import OdeSettings, probability_flow_ode
from sgc_experiments.progress import progress_bar
from sgc_experiments.score_network import ScoreNetwork
from sgc_experiments.sde import SDE
from sgc_experiments.training_settings import has_fast_bf16

_PIECE = 32  # images between two looks at the clock
_GREY_VALUE = 2 / 65535  # distance of neighbouring grey values in the range [−1, 1]


def standardised(network: ScoreNetwork, images: np.ndarray) -> Tensor:
    """uint16 (N, S, S) in the network's coordinates and on its device, (N, 1, S, S)."""
    return network.standardise(to_model_range(images).to(network.pixel_mean.device))


def dequantised(images: np.ndarray, seed: int = 0) -> Tensor:
    """uint16 (N, S, S) in [−1, 1], (N, 1, S, S), with noise that fills each grey value's cell.

    A density at whole numbers could be made as large as one likes. The noise depends on the seed
    alone and is the same for every image.
    """
    generator = torch.Generator().manual_seed(seed)
    cell = torch.rand(1, 1, *images.shape[1:], generator=generator) - 0.5
    return to_model_range(images) + _GREY_VALUE * cell


def _dequantised_chunks(
    network: ScoreNetwork, images: np.ndarray, seed: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the images, and what `dequantised` makes of each, on the network's device."""
    for chunk in chunks(len(images)):
        yield chunk, dequantised(images[chunk], seed).to(network.pixel_mean.device)


def _chunks(network: ScoreNetwork, images: np.ndarray) -> Iterator[Tensor]:
    for chunk in chunks(len(images)):
        yield standardised(network, images[chunk])


def _precision(network: ScoreNetwork) -> AbstractContextManager[None]:
    """In which errors are computed that only differences between classes are taken of."""
    device = network.pixel_mean.device
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device, network))


def image_errors(network: ScoreNetwork, images: np.ndarray, draws: Draws) -> Tensor:
    """`likelihood.squared_errors` (N, K, C) of uint16 images (N, S, S)."""
    empty = torch.zeros(0, len(draws), network.classes, dtype=torch.float64)
    with _precision(network):
        found = [squared_errors(network, x, draws) for x in _chunks(network, images)]
    return torch.cat([empty, *found])


def shared_image_errors(
    network: ScoreNetwork, images: np.ndarray, draws: Draws, *, title: str = ""
) -> Tensor:
    """`image_errors`, where there are several ranks by each for its share; see `ranks`.

    The first shows its progress under the title, if there is one.
    """

    def measure(share: np.ndarray) -> Tensor:
        found = [image_errors(network, share[:0], draws)]
        shown = bool(title) and ranks.number() == 0
        with progress_bar(total=len(share), title=title, unit="image", shown=shown) as bar:
            for start in range(0, len(share), _PIECE):
                found.append(image_errors(network, share[start : start + _PIECE], draws))
                bar.update(len(share[start : start + _PIECE]))
        return torch.cat(found)

    return torch.cat(ranks.shared_out(measure, images))


def flow_log_odds(
    network: ScoreNetwork, sde: SDE, images: np.ndarray, settings: OdeSettings
) -> tuple[np.ndarray, np.ndarray, float]:
    """Log-odds against class 0 from the probability-flow ODE of dequantised images.

    Args:
        network: In evaluation mode.
        sde: Whose flow is followed.
        images: uint16 (N, S, S).
        settings: Its seed is also that of the dequantisation.

    Returns:
        Log-odds (N, C), their standard errors (N, C), and the mean number of network evaluations.
    """
    none = np.zeros((0, network.classes))
    log_odds, errors, counts = [none], [none], [np.zeros(0)]
    for _, pixels in _dequantised_chunks(network, images, settings.seed):
        x = network.standardise(pixels)
        found = probability_flow_ode(network, sde, x, settings=settings)
        log_odds.append(found.log_odds.numpy())
        errors.append(found.log_odds_error.numpy())
        counts.append(found.evaluations.numpy())
    count = float(np.concatenate(counts).mean()) if len(images) else 0.0
    return np.concatenate(log_odds), np.concatenate(errors), count


def evidence_maps(
    network: ScoreNetwork, images: np.ndarray, draws: Draws, *, target: int, reference: int
) -> np.ndarray:
    """Per-pixel log-odds of class `target` against `reference`; float64 (N, S, S)."""
    maps = [np.zeros((0, *images.shape[1:]))]
    for x in _chunks(network, images):
        with _precision(network):
            per_class = error_maps(network, x, draws)
        maps.append((per_class[:, reference] - per_class[:, target]).numpy())
    return np.concatenate(maps)


def own_bits_per_dim(
    network: ScoreNetwork,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    log_snr_min: float,
    log_snr_max: float,
    draws: int = 16,
) -> np.ndarray:
    """Bits per pixel of 16-bit images under their own class, an upper bound; float64 (N,).

    What the standardisation takes from an image, its mean and contrast, is not counted.

    Args:
        network: In evaluation mode.
        images: uint16 (N, S, S).
        labels: int64 (N,).
        log_snr_min: Lowest log-SNR that the network was trained on.
        log_snr_max: Highest.
        draws: Of noise, the same for every image.
    """
    levels = LogSNRDensity.uniform(log_snr_min, log_snr_max)
    noise = make_draws((1, *images.shape[1:]), levels, draws)
    excess = _excess_of_noise(noise)
    bits = [np.zeros(0)]
    for chunk, pixels in _dequantised_chunks(network, images):
        x = network.standardise(pixels)
        own = torch.arange(len(x)), torch.as_tensor(labels[chunk])
        bound = elbo(network, x, noise).log_likelihood[own] + excess
        bound = bound + elbo_end_terms(x, log_snr_min, log_snr_max).cpu()
        # Grey values lie so far apart before the standardisation divides them by the contrast.
        contrast = network.contrast(pixels).double().cpu().flatten()
        found = bits_per_dim(bound, x[0].numel(), _GREY_VALUE) + torch.log2(contrast)
        bits.append(found.numpy())
    return np.concatenate(bits)


def _excess_of_noise(draws: Draws) -> float:
    """What the draws' bound is too low by because their noise is longer than noise is on average.

    ½ Σ_k weight_k sigmoid(λ_k) (‖ε_k‖² − D), of mean 0. Where noise is little a denoiser finds
    hardly any of it, so that the error is ‖ε‖² itself; where there is much, it finds nearly all.
    All images have the same noise: no number of them would average this away.
    """
    lengths = draws.noise.double().flatten(1).square().sum(1) - draws.noise[0].numel()
    return float(0.5 * (draws.weight * torch.sigmoid(draws.log_snr) * lengths).sum())
