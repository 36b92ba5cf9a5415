"""Classes with exact likelihoods, for tests of the estimators."""

import torch

from sgc_experiments.analytic import GaussianMixtureClasses


def equal_covariances(dimensions: int = 16) -> GaussianMixtureClasses:
    """Two Gaussians that differ in the mean."""
    generator = torch.Generator().manual_seed(3)
    covariance = _covariance(dimensions, generator)
    mean = 0.35 * torch.randn(dimensions, generator=generator).double()
    return GaussianMixtureClasses.gaussians([mean, -mean], [covariance, covariance])


def unequal_covariances(dimensions: int = 16) -> GaussianMixtureClasses:
    """Two Gaussians that differ in mean and covariance."""
    generator = torch.Generator().manual_seed(4)
    means = 0.2 * torch.randn(2, dimensions, generator=generator).double()
    covariances = [_covariance(dimensions, generator) for _ in range(2)]
    return GaussianMixtureClasses.gaussians(list(means), covariances)


def mixtures(dimensions: int = 16, classes: int = 3) -> GaussianMixtureClasses:
    """Classes of two Gaussians each."""
    generator = torch.Generator().manual_seed(5)
    means = 0.5 * torch.randn(classes, 2, dimensions, generator=generator).double()
    covariances = torch.stack(
        [
            torch.stack([_covariance(dimensions, generator) for _ in range(2)])
            for _ in range(classes)
        ]
    )
    weights = torch.rand(classes, 2, generator=generator) + 0.2
    return GaussianMixtureClasses(weights, means, covariances)


def _covariance(dimensions: int, generator: torch.Generator) -> torch.Tensor:
    factor = torch.randn(dimensions, dimensions, generator=generator).double()
    return 0.3 * factor @ factor.mT / dimensions + 0.3 * torch.eye(dimensions).double()


EXACT = {"equal": equal_covariances, "unequal": unequal_covariances, "mixture": mixtures}
