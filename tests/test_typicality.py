"""What is typical: a Gaussian of the class-free likelihood by band, and a threshold."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import chi

from sgc_experiments.likelihood import make_draws, squared_errors
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.typicality import TypicalSet, features
from tests.exact_classes import unequal_covariances


def gaussian(count, seed):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 5)) * [1, 2, 3, 0.1, 10] + 7


@pytest.mark.parametrize("count", [12, 40, 400])
def test_one_image_in_a_hundred_is_called_foreign(count):
    """Averaged over validation sets; with few images, fewer are."""
    shares = []
    for seed in range(20):
        found = TypicalSet.fit(gaussian(2000, seed), gaussian(count, 100 + seed), 0.0, 1.0)
        shares.append(np.mean(found.distance(gaussian(4000, 200 + seed)) > found.threshold))
    assert 0.0005 < np.mean(shares) < 0.02


def test_the_distance_is_that_of_the_gaussian():
    found = TypicalSet.fit(gaussian(50_000, 0), gaussian(1000, 1), 0.0, 1.0)
    distance = found.distance(gaussian(20_000, 2))
    assert np.median(distance) == pytest.approx(chi(5).median(), rel=0.02)


@pytest.mark.parametrize("sizes", [(1, 20), (20, 1), (20, 0)])
def test_too_few_images_tell_nothing(sizes):
    assert TypicalSet.fit(gaussian(sizes[0], 0), gaussian(sizes[1], 1), 0.0, 1.0) is None


def test_it_survives_json():
    found = TypicalSet.fit(gaussian(30, 0), gaussian(30, 1), -1.0, 5.0)
    again = TypicalSet.from_dict(json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found


def test_features_are_the_mixture_bound_per_band():
    """One band over all levels: the mixture of the classes' bounds, relative to the noise."""
    truth = unequal_covariances(16)
    generator = torch.Generator().manual_seed(0)
    x = truth.sample(torch.tensor([0, 1, 0]), generator)
    draws = make_draws((16,), LogSNRDensity.uniform(-4, 8), 16)
    errors = squared_errors(truth, x, draws)
    images = np.random.default_rng(0).integers(0, 65536, (3, 4, 4)).astype(np.uint16)
    prior = np.array([0.7, 0.3])
    (found,) = features(images, errors, draws, prior, low=-4, high=8, bands=1)[None]
    nats = (0.5 * draws.weight[:, None] * errors).sum(1).numpy()
    mixture = -np.log((prior * np.exp(-nats)).sum(1))
    noise = 0.5 * float((draws.weight * draws.noise.square().sum(1)).sum())
    assert found[:, 0] == pytest.approx(np.log(mixture / noise))
    pixels = images.reshape(3, -1) / 32767.5 - 1
    assert found[:, 1] == pytest.approx(pixels.mean(1), abs=1e-6)
    assert found[:, 2] == pytest.approx(np.log(pixels.std(1)), abs=1e-5)


def test_an_empty_band_tells_nothing():
    truth = unequal_covariances(4)
    draws = make_draws((4,), LogSNRDensity.uniform(-4, 8), 1)
    errors = squared_errors(truth, torch.zeros(1, 4), draws)
    images = np.zeros((1, 2, 2), np.uint16)
    prior = np.full(2, 0.5)
    assert features(images, errors, draws, prior, low=-4, high=8, bands=4) is None
