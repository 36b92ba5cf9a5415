"""Evidence of whole images, from their grey values on, against exact answers."""

import math

import numpy as np
import pytest
import torch

from sgc_experiments.batches import from_model_range, to_model_range
from sgc_experiments.evidence import own_bits_per_dim
from tests.exact_classes import equal_covariances, unequal_covariances

_SIDE = 4


class ExactNetwork:
    """Exact denoisers of pictures whose pixels are Gaussian around a grey, behind a contrast."""

    pixel_mean = torch.tensor(-0.1)

    def __init__(self, truth, contrast):
        self.truth, self.classes, self.spread = truth, truth.classes, contrast

    def contrast(self, pixels):
        return torch.tensor(self.spread)

    def standardise(self, pixels):
        return (pixels - self.pixel_mean) / self.spread

    def all_classes(self, z, log_snr):
        return self.truth.all_classes(z.flatten(1), log_snr).unflatten(2, z.shape[1:])

    def images(self, labels):
        """Pictures (N, S, S) of the classes, uint16."""
        x = self.truth.sample(labels, torch.Generator().manual_seed(0))
        pixels = self.pixel_mean + self.spread * x.float()
        return from_model_range(pixels.unflatten(1, (1, _SIDE, _SIDE)))

    def exact_bits(self, images, labels):
        """−log₂ of the density per grey value, per pixel."""
        x = self.standardise(to_model_range(images)).flatten(1).double()
        log_density = self.truth.log_prob(x)[torch.arange(len(x)), labels]
        per_grey_value = 2 / 65535 / self.spread
        return -(log_density / x.shape[1] + math.log(per_grey_value)).numpy() / math.log(2)


@pytest.mark.parametrize("classes", [equal_covariances, unequal_covariances])
@pytest.mark.parametrize("contrast", [0.02, 0.2])
def test_bits_per_dim_under_the_own_class_are_exact(classes, contrast):
    network = ExactNetwork(classes(_SIDE**2), contrast)
    labels = torch.arange(200) % 2
    images = network.images(labels)
    assert images.min() > 0
    assert images.max() < 65535
    bits = own_bits_per_dim(
        network, images, labels.numpy(), log_snr_min=-12.0, log_snr_max=12.0, draws=1024
    )
    exact = network.exact_bits(images, labels)
    assert bits.shape == exact.shape
    assert bits.mean() == pytest.approx(exact.mean(), abs=0.05)
    assert np.abs(bits - exact).mean() < 0.2
    # The other class explains them less well, by as much as it truly does.
    others = own_bits_per_dim(
        network, images, 1 - labels.numpy(), log_snr_min=-12.0, log_snr_max=12.0, draws=1024
    )
    excess = network.exact_bits(images, 1 - labels) - exact
    assert (others - bits).mean() == pytest.approx(excess.mean(), rel=0.05)


def test_bits_of_few_draws_do_not_hang_on_how_long_their_common_noise_is():
    network = ExactNetwork(equal_covariances(_SIDE**2), 0.2)
    labels = torch.arange(200) % 2
    images = network.images(labels)
    bits = own_bits_per_dim(network, images, labels.numpy(), log_snr_min=-12.0, log_snr_max=12.0)
    # The bound of these draws as it stands is 2.1 bits too low.
    assert bits.mean() == pytest.approx(network.exact_bits(images, labels).mean(), abs=0.2)


def test_no_images_have_no_bits():
    network = ExactNetwork(equal_covariances(_SIDE**2), 0.2)
    none = np.zeros((0, _SIDE, _SIDE), np.uint16)
    assert own_bits_per_dim(
        network, none, np.zeros(0, np.int64), log_snr_min=-12.0, log_snr_max=12.0
    ).shape == (0,)
