"""From stored images to the errors that all evidence is made of, at the images' own scale.

The network works on standardised images; here uint16 images go in, in chunks that bound the memory
on the device, and float64 results on the CPU come out.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sgc_experiments.batches import to_model_range
from sgc_experiments.likelihood import Draws, error_maps, squared_errors
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
