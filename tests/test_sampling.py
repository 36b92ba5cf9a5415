"""Samplers: with exact denoisers, samples have the class's moments."""

import pytest
import torch

from sgc_experiments.sampling import SAMPLERS, sample
from tests.exact_classes import unequal_covariances


class ExactImages:
    """The exact denoiser of 2 × 2 images, shaped as a network is."""

    def __init__(self):
        self.truth = unequal_covariances(4)
        self.classes = self.truth.classes

    def __call__(self, z, log_snr, classes):
        return self.truth(z.flatten(1), log_snr, classes).to(z.dtype).reshape(z.shape)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_moments_of_their_class(sampler):
    network = ExactImages()
    labels = torch.arange(2).repeat_interleave(4000)
    images = sample(network, labels, 2, log_snr_min=-10, log_snr_max=12, sampler=sampler, steps=300)
    assert images.shape == (8000, 1, 2, 2)
    for c in range(2):
        x = images[labels == c].flatten(1).double()
        truth = network.truth
        covariance = truth.axes[c, 0] @ truth.variances[c, 0].diag() @ truth.axes[c, 0].mT
        torch.testing.assert_close(x.mean(0), truth.means[c, 0], rtol=0, atol=0.05)
        torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.05)


def test_guidance_pushes_away_from_the_null_class():
    class Shifted:
        """Denoisers whose image is a constant: 0 for the null class, 1 for class 0."""

        classes = 1

        def __call__(self, z, log_snr, classes):
            level = log_snr.double()[:, None, None, None]
            clean = (classes == 0).to(z)[:, None, None, None]
            return ((z - level.sigmoid().sqrt() * clean) / (-level).sigmoid().sqrt()).to(z.dtype)

    labels = torch.zeros(2, dtype=torch.long)
    for guidance in (0.0, 1.0, 3.0):
        images = sample(Shifted(), labels, 2, log_snr_min=-4, log_snr_max=6, guidance=guidance)
        torch.testing.assert_close(images, torch.full_like(images, guidance), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "named"), [({"sampler": "x"}, "sampler"), ({"steps": 0}, "steps")]
)
def test_a_wrong_parameter_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        sample(
            ExactImages(),
            torch.zeros(1, dtype=torch.long),
            2,
            log_snr_min=-4,
            log_snr_max=6,
            **arguments,
        )
