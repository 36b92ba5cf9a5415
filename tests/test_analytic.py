"""The analytic classes are the truth of other tests: here they are checked against torch."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sgc_experiments.analytic import GaussianMixtureClasses
from tests.exact_classes import EXACT, mixtures


@pytest.mark.parametrize("name", EXACT)
def test_log_prob_is_that_of_torch(name):
    truth = EXACT[name](5)
    x = truth.sample(torch.tensor([0, 1, 1, 0]), torch.Generator().manual_seed(0))
    for c in range(truth.classes):
        covariance = truth.axes[c] @ torch.diag_embed(truth.variances[c]) @ truth.axes[c].mT
        density = MixtureSameFamily(
            Categorical(logits=truth.log_weights[c]), MultivariateNormal(truth.means[c], covariance)
        )
        torch.testing.assert_close(truth.log_prob(x)[:, c], density.log_prob(x))


def test_the_denoiser_is_the_score_of_the_noisy_density():
    """−ε̂/σ = ∇ log p(z), p(z) being the same mixture with αμ and α²Σ + σ²."""
    truth = mixtures(4)
    level = torch.tensor([0.7], dtype=torch.float64)
    alpha2, sigma2 = torch.sigmoid(level), torch.sigmoid(-level)
    covariance = truth.axes @ torch.diag_embed(truth.variances) @ truth.axes.mT
    noisy = GaussianMixtureClasses(
        truth.log_weights.exp(),
        alpha2.sqrt() * truth.means,
        alpha2 * covariance + sigma2 * torch.eye(4),
    )
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z.requires_grad_()
    for c in range(truth.classes):
        (score,) = torch.autograd.grad(noisy.log_prob(z)[:, c].sum(), z)
        eps = truth(z, level.expand(6), torch.full((6,), c))
        torch.testing.assert_close(-eps / sigma2.sqrt(), score)


def test_samples_have_the_moments_of_their_class():
    truth = mixtures(3)
    x = truth.sample(torch.ones(40_000, dtype=torch.long), torch.Generator().manual_seed(2))
    weights = truth.log_weights[1].exp()
    mean = weights @ truth.means[1]
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)


def test_covariances_must_be_positive_definite():
    with pytest.raises(ValueError, match="covariances"):
        GaussianMixtureClasses.gaussians(torch.zeros(2, 2), [torch.eye(2), -torch.eye(2)])
