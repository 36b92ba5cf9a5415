"""Sampling densities over λ: quantiles, densities, and integrals without bias."""

import pytest
import torch

from sgc_experiments.noise_levels import LogSNRDensity, stratified_uniforms

SKEWED = LogSNRDensity([-4.0, 0.0, 1.0, 6.0], [1.0, 5.0, 2.0])


def test_density_integrates_to_one_and_matches_its_quantiles():
    grid = torch.linspace(-4, 6, 100_001, dtype=torch.float64)
    cumulative = torch.cumulative_trapezoid(SKEWED.density(grid), grid)
    assert float(cumulative[-1]) == pytest.approx(1, abs=1e-4)
    for p in (0.05, 0.125, 0.5, 0.9):
        level = SKEWED.quantile(torch.tensor(p))
        assert float(cumulative[torch.searchsorted(grid, level) - 1]) == pytest.approx(p, abs=1e-3)


def test_quantiles_stay_inside_the_range():
    ends = SKEWED.quantile(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [-4.0, 6.0]


@pytest.mark.parametrize("density", [SKEWED, LogSNRDensity.uniform(-4, 6)])
@pytest.mark.parametrize("strata", [1, 50])
def test_reweighted_samples_integrate_without_bias(density, strata):
    """∫ λ² dλ over [−4, 6] is 280/3, whatever density the samples come from."""
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(400):
        level = density.quantile(stratified_uniforms(50, strata, generator))
        estimates.append(float((level.square() / density.density(level)).mean()))
    estimates = torch.tensor(estimates)
    error = float(estimates.std()) / len(estimates) ** 0.5
    assert abs(float(estimates.mean()) - 280 / 3) < 4 * error
    if strata == 50:
        assert float(estimates.std()) < 2


def test_each_stratum_gets_its_share():
    values = stratified_uniforms(10, 5, torch.Generator().manual_seed(1))
    assert (values * 5).floor().long().bincount().tolist() == [2] * 5


@pytest.mark.parametrize(
    ("edges", "masses", "named"),
    [
        ([0.0, 1.0], [1.0, 1.0], "edges"),
        ([1.0, 1.0], [1.0], "edges"),
        ([0.0, 1.0], [0.0], "masses"),
        ([0.0, float("inf")], [1.0], "edges"),
    ],
)
def test_a_wrong_argument_is_named(edges, masses, named):
    with pytest.raises(ValueError, match=named):
        LogSNRDensity(edges, masses)
