"""The evidence lower bound against exact answers, and what it must not depend on."""

import math

import pytest
import torch

from sgc_experiments.likelihood import (
    _weighted_sum,
    bits_per_dim,
    elbo,
    elbo_end_terms,
    error_maps,
    make_draws,
    squared_errors,
)
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.score_network import ScoreNetwork
from tests.exact_classes import EXACT, equal_covariances, unequal_covariances

UNIFORM = LogSNRDensity.uniform(-12, 12)
# Most of the difference between the exact classes lies where noise and signal are alike.
IMPORTANCE = LogSNRDensity([-12, -6, -2, 4, 8, 12], [0.3, 1.5, 6.0, 1.5, 0.3])
ESTIMATORS = {
    "plain": {"density": UNIFORM, "stratified": False},
    "stratified": {"density": UNIFORM},
    "antithetic": {"density": UNIFORM, "antithetic": True},
    "importance": {"density": IMPORTANCE},
    "importance antithetic": {"density": IMPORTANCE, "antithetic": True},
}


def images_of(truth, count=4):
    labels = torch.arange(count) % truth.classes
    return truth.sample(labels, torch.Generator().manual_seed(0))


def estimate(truth, x, count, *, density, **options):
    draws = make_draws(x.shape[1:], density, count, **options)
    return elbo(truth, x, draws, batch_size=20_000)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", EXACT)
def test_log_odds_are_exact_within_three_standard_errors(name, estimator):
    truth = EXACT[name]()
    x = images_of(truth)
    exact = truth.log_prob(x)
    exact = exact - exact[:, :1]
    result = estimate(truth, x, 2_000, **ESTIMATORS[estimator])
    deviation = (result.log_odds - exact)[:, 1:] / result.log_odds_error[:, 1:]
    # The draws are shared by the images, so that deviations are alike: few are independent.
    assert deviation.abs().max() < 3
    assert (result.log_odds[:, 0] == 0).all()


@pytest.mark.parametrize("name", EXACT)
def test_log_odds_are_exact_within_one_percent(name):
    """With the estimator of least variance and many draws."""
    truth = EXACT[name]()
    x = images_of(truth)
    exact = truth.log_prob(x)
    exact = (exact - exact[:, :1])[:, 1:]
    options = ESTIMATORS["importance antithetic"]
    values = [estimate(truth, x, 8_000, seed=seed, **options).log_odds for seed in range(3)]
    error = torch.stack(values).mean(0)[:, 1:] - exact
    assert error.abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize("estimator", ["plain", "stratified", "importance antithetic"])
def test_standard_errors_are_the_spread_over_seeds(estimator):
    truth = unequal_covariances()
    x = images_of(truth, 2)
    results = [estimate(truth, x, 64, seed=seed, **ESTIMATORS[estimator]) for seed in range(60)]
    spread = torch.stack([r.log_odds[:, 1] for r in results]).std(0)
    claimed = torch.stack([r.log_odds_error[:, 1] for r in results]).square().mean(0).sqrt()
    assert ((claimed / spread - 1).abs() < 0.35).all()


def test_sharing_noise_between_classes_is_what_makes_log_odds_precise():
    truth = equal_covariances()
    result = estimate(truth, images_of(truth), 500, density=UNIFORM)
    apart = result.standard_error.square().sum(1).sqrt()
    assert (result.log_odds_error[:, 1] < apart / 3).all()


def test_the_full_bound_is_tight_for_exact_denoisers():
    truth = unequal_covariances(6)
    x = images_of(truth, 6)
    draws = make_draws((6,), LogSNRDensity.uniform(-12, 14), 20_000, antithetic=True)
    result = elbo(truth, x, draws, batch_size=40_000)
    bound = result.log_likelihood + elbo_end_terms(x, -12, 14)[:, None]
    assert ((bound - truth.log_prob(x)).abs() < 3 * result.standard_error).all()


def test_draws_come_from_seed_and_index_alone():
    """One image, or the same among others, or in other pieces: the same numbers."""
    truth = unequal_covariances()
    x = images_of(truth, 8)
    draws = make_draws((16,), UNIFORM, 32)
    together = squared_errors(truth, x, draws, batch_size=10_000)
    torch.testing.assert_close(squared_errors(truth, x[5:6], draws), together[5:6])
    for batch_size in (1, 7, 40):
        pieces = squared_errors(truth, x, draws, batch_size=batch_size)
        torch.testing.assert_close(pieces, together)


def test_antithetic_pairs_share_the_level_and_oppose_the_noise():
    draws = make_draws((5,), UNIFORM, 10, antithetic=True, symmetries=(0, 3))
    assert torch.equal(draws.log_snr[::2], draws.log_snr[1::2])
    assert torch.equal(draws.noise[::2], -draws.noise[1::2])
    assert draws.symmetry[::2] == draws.symmetry[1::2]  # of a pair, the same
    assert sorted(draws.symmetry[::2]) == [0, 0, 0, 3, 3]
    assert len(draws) == len(draws.noise) == 10
    assert draws.antithetic


def test_draws_by_default_are_one_to_a_stratum_of_a_pair():
    draws = make_draws((1,), UNIFORM, 8, symmetries=(0, 3))
    assert draws.stratum.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ((draws.log_snr + 12) // 6).tolist() == draws.stratum.tolist()
    assert sorted(draws.symmetry) == [0] * 4 + [3] * 4
    assert torch.equal(draws.noise, make_draws((1,), UNIFORM, 8, seed=0).noise)
    assert not torch.equal(draws.noise, make_draws((1,), UNIFORM, 8, seed=1).noise)
    assert make_draws((1,), UNIFORM, 8, stratified=False).stratum.tolist() == [0] * 8


def test_every_symmetry_sees_every_noise_level():
    codes = tuple(range(8))
    met = set()
    for seed in range(60):
        draws = make_draws((1,), UNIFORM, 16, seed=seed, symmetries=codes)
        assert sorted(draws.symmetry) == sorted(codes * 2)
        met |= set(zip(draws.symmetry, draws.stratum.tolist(), strict=True))
    assert len(met) == 8 * 8


def test_errors_are_those_of_the_definition():
    truth = unequal_covariances()
    x, draws = images_of(truth, 3), make_draws((16,), UNIFORM, 6)
    expected = []
    for level, noise in zip(draws.log_snr, draws.noise.double(), strict=True):
        z = level.sigmoid().sqrt() * x + (-level).sigmoid().sqrt() * noise
        eps = truth.all_classes(z, level.expand(len(x)))
        expected.append((noise - eps).square().sum(2))
    found = squared_errors(truth, x, draws)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-9, atol=0)


class Nothing:
    """A denoiser that finds no noise."""

    classes = 1

    def all_classes(self, z, log_snr):
        return torch.zeros(len(z), 1, *z.shape[1:])


def test_errors_of_single_precision_are_added_up_in_double():
    draws = make_draws((5000,), UNIFORM, 4)
    found = squared_errors(Nothing(), torch.zeros(1, 5000), draws)[0, :, 0]
    expected = draws.noise.square().sum(1, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("batch_size", "most"), [(1, 2), (7, 6), (40, 32), (1000, 80)])
@pytest.mark.parametrize("function", [squared_errors, elbo])
def test_no_more_evaluations_at_once_than_asked_for(function, batch_size, most):
    truth, sizes = unequal_covariances(), []

    class Counted:
        classes = 2

        def all_classes(self, z, log_snr):
            sizes.append(2 * len(z))
            return truth.all_classes(z, log_snr)

    function(Counted(), images_of(truth, 5), make_draws((16,), UNIFORM, 8), batch_size=batch_size)
    assert (max(sizes), sum(sizes)) == (most, 80)


@pytest.mark.parametrize("density", [UNIFORM, IMPORTANCE])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_weights_integrate_one_over_the_range(density, count):
    """Σ weight is the length of the range, in expectation; exactly, if q is uniform."""
    totals = [make_draws((1,), density, count, seed=s).weight.sum() for s in range(300)]
    mean, error = torch.stack(totals).mean(), torch.stack(totals).std() / 300**0.5
    assert abs(float(mean) - 24) < 4 * float(error) + 1e-9


def test_a_single_draw_has_no_standard_error():
    truth = equal_covariances()
    x, draws = images_of(truth), make_draws((16,), UNIFORM, 1)
    result, errors = elbo(truth, x, draws), squared_errors(truth, x, draws)[:, 0]
    assert result.log_odds_error.isnan().all()
    torch.testing.assert_close(result.log_odds, 12 * (errors[:, :1] - errors))  # ½ · 24


def test_every_evaluation_is_counted():
    truth = EXACT["mixture"]()
    result = estimate(truth, images_of(truth), 10, density=UNIFORM)
    assert result.evaluations.tolist() == [30] * 4
    assert result.evaluations.dtype == torch.float64


def test_end_terms_are_a_divergence_and_a_reconstruction():
    x = torch.linspace(-2, 3, 6).reshape(2, 1, 3)
    alpha2 = 1 / (1 + math.e)  # sigmoid(−1)
    noisy = torch.distributions.Normal(alpha2**0.5 * x.double(), (1 - alpha2) ** 0.5)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    divergence = torch.distributions.kl_divergence(noisy, normal).sum((1, 2))
    expected = 1.5 * (2.0 - 1 - math.log(2 * math.pi)) - divergence
    torch.testing.assert_close(elbo_end_terms(x, -1.0, 2.0), expected)


def test_the_error_of_independent_draws_by_hand():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    draws = make_draws((1,), UNIFORM, 4, stratified=False)
    total, error = _weighted_sum(values[None, :, None], draws)
    assert float(total) == pytest.approx(24 * 4)
    assert float(error) == pytest.approx(24 * float(values.std()) / 2)


def test_maps_sum_to_the_log_odds_in_any_orientation():
    torch.manual_seed(0)
    network = ScoreNetwork(2, channels=(8,), blocks=1)
    torch.nn.init.normal_(network.head.weight, std=0.2)
    images = torch.randn(3, 1, 8, 8)
    draws = make_draws((1, 8, 8), UNIFORM, 16, symmetries=tuple(range(8)))
    maps = error_maps(network, images, draws)
    odds = elbo(network, images, draws).log_odds[:, 1]
    torch.testing.assert_close((maps[:, 0] - maps[:, 1]).sum((1, 2)), odds, rtol=1e-4, atol=1e-4)
    for batch_size in (1, 6, 40):
        pieces = error_maps(network, images, draws, batch_size=batch_size)
        torch.testing.assert_close(pieces, maps, rtol=1e-4, atol=1e-4)


def test_maps_are_in_the_images_own_orientation():
    """A class that differs in one pixel leaves evidence at that pixel, whatever the symmetry."""

    class OnePixel:
        classes = 2

        def all_classes(self, z, log_snr):
            eps = torch.zeros(len(z), 2, z[0].numel())
            # The pixel that stands out in the clean image; found in z, which is hardly noisy.
            eps[torch.arange(len(z)), 1, z.flatten(1).argmax(1)] = 5.0
            return eps.unflatten(2, z.shape[1:])

    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 1, 4] = 100.0
    density = LogSNRDensity.uniform(6, 8)
    draws = make_draws((1, 6, 6), density, 16, symmetries=tuple(range(8)))
    maps = error_maps(OnePixel(), image, draws)
    evidence = (maps[0, 0] - maps[0, 1]).abs()
    assert divmod(int(evidence.argmax()), 6) == (1, 4)
    assert evidence.sum() == evidence.max() > 0


def test_bits_per_dim_of_a_uniform_image_are_its_bits():
    """A uniform density over [−1, 1]^D, on 2^b grey values, needs b bits per pixel."""
    log_likelihood = torch.tensor([-10 * math.log(2.0)])
    for bits in (8, 16):
        value = bits_per_dim(log_likelihood, 10, 2 / 2**bits)
        assert float(value) == pytest.approx(bits)


@pytest.mark.parametrize("count", [0, 3])
def test_a_wrong_count_is_named(count):
    with pytest.raises(ValueError, match="count"):
        make_draws((1,), UNIFORM, count, antithetic=True)
