"""From stored images to the errors that all evidence is made of, at the images' own scale.

The network works on standardised images; here uint16 images go in, in chunks that bound the memory
on the device, and float64 results on the CPU come out.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.batches import to_model_range
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
from sgc_experiments.score_network import ScoreNetwork

_CHUNK = 256  # images on the device at once


def standardised(network: ScoreNetwork, images: np.ndarray) -> Tensor:
    """uint16 (N, S, S) in the network's coordinates and on its device, (N, 1, S, S)."""
    return network.standardise(to_model_range(images).to(network.pixel_mean.device))


def _chunks(network: ScoreNetwork, images: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(images), _CHUNK):
        yield standardised(network, images[start : start + _CHUNK])


def image_errors(network: ScoreNetwork, images: np.ndarray, draws: Draws) -> Tensor:
    """`likelihood.squared_errors` (N, K, C) of uint16 images (N, S, S)."""
    empty = torch.zeros(0, len(draws), network.classes, dtype=torch.float64)
    return torch.cat(
        [empty, *(squared_errors(network, x, draws) for x in _chunks(network, images))]
    )


def evidence_maps(
    network: ScoreNetwork, images: np.ndarray, draws: Draws, *, target: int, reference: int
) -> np.ndarray:
    """Per-pixel log-odds of class `target` against `reference`; float64 (N, S, S)."""
    maps = [np.zeros((0, *images.shape[1:]))]
    for x in _chunks(network, images):
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
    bits, start = [np.zeros(0)], 0
    for x in _chunks(network, images):
        chunk = slice(start, start + len(x))
        start += len(x)
        own = torch.arange(len(x)), torch.as_tensor(labels[chunk])
        bound = elbo(network, x, noise).log_likelihood[own]
        bound = bound + elbo_end_terms(x, log_snr_min, log_snr_max).cpu()
        # Neighbouring grey values lie 2 / 65535 apart before the standardisation divides them.
        contrast = network.contrast(to_model_range(images[chunk]).to(x)).double().cpu().flatten()
        bits.append((bits_per_dim(bound, x[0].numel(), 2 / 65535) + torch.log2(contrast)).numpy())
    return np.concatenate(bits)
