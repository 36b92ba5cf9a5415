"""SDEs: schedules that invert, rates that are derivatives, kernels that belong to their SDE."""

import math

import pytest
import torch

from sgc_experiments.sde import SDES, T_MIN, make_sde, resolution_log_snr_shift

TIMES = torch.linspace(T_MIN, 1, 4001, dtype=torch.float64)[1:-1]
CASES = [
    *((kind, {}) for kind in SDES),
    *((kind, {"log_snr_shift": -1.7}) for kind in SDES),
    ("log_snr", {"log_snr_knots": (12.0, 7.0, 6.5, -3.0, -9.0)}),
    ("vp", {"beta_min": 1e-3, "beta_max": 300.0}),
]


@pytest.mark.parametrize(("kind", "parameters"), CASES)
class TestEverySDE:
    def test_time_inverts_log_snr(self, kind, parameters):
        sde = make_sde(kind, **parameters)
        torch.testing.assert_close(sde.time(sde.log_snr(TIMES)), TIMES, rtol=1e-9, atol=1e-12)

    def test_log_snr_strictly_decreases(self, kind, parameters):
        assert (make_sde(kind, **parameters).log_snr(TIMES).diff() < 0).all()

    def test_log_snr_is_that_of_the_marginal(self, kind, parameters):
        sde = make_sde(kind, **parameters)
        alpha, sigma = sde.marginal_prob(TIMES)
        torch.testing.assert_close(2 * (alpha / sigma).log(), sde.log_snr(TIMES))

    def test_rates_are_derivatives(self, kind, parameters):
        sde = make_sde(kind, **parameters)
        t = TIMES.clone().requires_grad_()
        (rate,) = torch.autograd.grad(sde.log_snr(t).sum(), t)
        torch.testing.assert_close(sde.log_snr_rate(TIMES), rate)

    def test_time_reaches_both_ends(self, kind, parameters):
        sde = make_sde(kind, **parameters)
        ends = torch.tensor([1.0, T_MIN], dtype=torch.float64)
        levels = torch.tensor(sde.log_snr_range(), dtype=torch.float64)
        torch.testing.assert_close(sde.time(levels), ends, rtol=1e-6, atol=1e-9)
        assert (sde.log_snr_rate(ends) < 0).all()

    def test_marginal_obeys_the_moment_equations(self, kind, parameters):
        """α˙ = f α and (σ²)˙ = 2 f σ² + g², by central differences."""
        sde = make_sde(kind, **parameters)
        t = torch.tensor([0.05, 0.23, 0.41, 0.62, 0.97], dtype=torch.float64)
        h = 1e-6
        (alpha, sigma), (f, g) = sde.marginal_prob(t), sde.drift_and_diffusion(t)
        (alpha0, sigma0), (alpha1, sigma1) = sde.marginal_prob(t - h), sde.marginal_prob(t + h)
        # Compared with g², since a schedule may leave almost no signal to differentiate.
        variance_rate = (sigma1.square() - sigma0.square()) / (2 * h)
        torch.testing.assert_close((alpha1 - alpha0) / (2 * h), f * alpha, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            variance_rate - 2 * f * sigma.square(), g.square(), rtol=1e-4, atol=1e-6
        )


def test_vp_is_the_papers():
    """log α = −¼t²(β₁−β₀) − ½tβ₀ and σ² = 1 − α²."""
    t = torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    alpha, sigma = make_sde("vp", beta_min=0.1, beta_max=20.0).marginal_prob(t)
    expected = torch.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
    torch.testing.assert_close(alpha, expected)
    torch.testing.assert_close(sigma.square(), 1 - expected.square(), rtol=1e-9, atol=0)


def test_sub_vp_variance_is_the_square_of_vp_variance():
    vp, sub = make_sde("vp"), make_sde("sub_vp")
    torch.testing.assert_close(sub.marginal_prob(TIMES)[1], vp.marginal_prob(TIMES)[1].square())
    torch.testing.assert_close(sub.marginal_prob(TIMES)[0], vp.marginal_prob(TIMES)[0])


def test_ve_prior_is_as_wide_as_sigma_max():
    assert make_sde("ve", sigma_max=50.0).prior_std() == pytest.approx(math.hypot(1, 50))


@pytest.mark.parametrize("kind", SDES)
def test_prior_log_prob_is_a_normal_density(kind):
    sde = make_sde(kind)
    z = torch.linspace(-2, 3, 12).reshape(2, 6)
    normal = torch.distributions.Normal(0.0, sde.prior_std())
    torch.testing.assert_close(sde.prior_log_prob(z), normal.log_prob(z.double()).sum(1))


def test_ranges_by_default():
    clean, noisy = 0.1e-5 + 9.95e-10, 10.05  # the integral of β at the two ends
    expected = {
        "vp": [-math.log(math.expm1(b)) for b in (noisy, clean)],
        "cosine": [-10, 14],
        "log_snr": [-10, 14],
        "sub_vp": [-b - 2 * math.log(-math.expm1(-b)) for b in (noisy, clean)],
        "ve": [-2 * math.log(150), -2 * math.log(1e-3 * 150_000**1e-5)],
    }
    for kind, ends in expected.items():
        assert make_sde(kind).log_snr_range() == pytest.approx(tuple(ends), rel=1e-8)


def test_kinks_are_where_the_slope_jumps():
    sde = make_sde("log_snr", log_snr_knots=(12.0, 7.0, 6.5, -9.0))
    kinks = sde.kinks()
    torch.testing.assert_close(kinks, torch.linspace(T_MIN, 1, 4, dtype=torch.float64)[1:-1])
    torch.testing.assert_close(sde.log_snr(kinks), torch.tensor([7.0, 6.5], dtype=torch.float64))
    assert (sde.log_snr_rate(kinks - 1e-9) != sde.log_snr_rate(kinks + 1e-9)).all()
    for kind in SDES:
        none = make_sde(kind).kinks()
        assert (none.shape, none.dtype) == ((0,), torch.float64)


def test_a_piecewise_schedule_goes_on_beyond_its_ends():
    sde, half = make_sde("log_snr", log_snr_knots=(12.0, 6.0, -9.0)), (1 - T_MIN) / 2
    t = torch.tensor([T_MIN - 0.1, 1.1], dtype=torch.float64)
    expected = torch.tensor([12 + 0.6 / half, -9 - 1.5 / half], dtype=torch.float64)
    torch.testing.assert_close(sde.log_snr(t), expected)
    torch.testing.assert_close(sde.time(expected), t)
    slopes = torch.tensor([-6, -15], dtype=torch.float64) / half
    torch.testing.assert_close(sde.log_snr_rate(t), slopes)


def test_shift_makes_up_for_resolution():
    """Averaging k × k pixels divides the noise variance by k²."""
    assert resolution_log_snr_shift(256) == pytest.approx(-math.log(16))
    assert resolution_log_snr_shift(64) == 0


@pytest.mark.parametrize(
    ("kind", "parameters", "named"),
    [
        ("vpp", {}, "sde"),
        ("vp", {"beta_min": 0.0}, "beta_min"),
        ("vp", {"beta_max": -1.0}, "beta_max"),
        ("vp", {"beta_max": math.nan}, "beta_max"),
        ("sub_vp", {"beta_min": 30.0}, "beta_max"),
        ("ve", {"sigma_min": -1.0}, "sigma_min"),
        ("ve", {"sigma_max": 1e-9}, "sigma_max"),
        ("cosine", {"log_snr_max": -11.0}, "log_snr_max"),
        ("log_snr", {"log_snr_knots": (3.0, 3.0)}, "log_snr_knots"),
        ("log_snr", {"log_snr_knots": (3.0,)}, "log_snr_knots"),
        ("ve", {"beta_min": 1.0}, "beta_min"),
        ("vp", {"log_snr_shift": math.inf}, "log_snr_shift"),
        ("vp", {"beta_min": 2.0, "beta_max": 2.0}, "beta_max must be finite and above beta_min"),
        ("vp", {"beta_max": math.inf}, "beta_max must be finite"),
        ("cosine", {"log_snr_min": -math.inf}, "log_snr_min must be below log_snr_max"),
        ("cosine", {"log_snr_max": math.inf}, "log_snr_min must be below log_snr_max"),
        ("cosine", {"log_snr_min": 3.0, "log_snr_max": 3.0}, "log_snr_min must be below"),
        ("ve", {"sigma_min": 0.0}, "sigma_min must be positive"),
        ("ve", {"sigma_min": 2.0, "sigma_max": 2.0}, "sigma_max must be finite and above"),
        ("ve", {"sigma_max": math.inf}, "sigma_max must be finite and above"),
        ("log_snr", {"log_snr_knots": (math.inf, 3.0)}, "^log_snr_knots must hold at least two"),
        ("log_snr", {"log_snr_knots": (3.0,)}, "^log_snr_knots must hold at least two finite"),
        ("log_snr", {"log_snr_knots": (3.0, 3.0)}, "^log_snr_knots must strictly decrease$"),
        ("vpp", {}, "^sde must be one of vp, cosine, log_snr, sub_vp, ve, not 'vpp'$"),
    ],
)
def test_a_wrong_parameter_is_named(kind, parameters, named):
    with pytest.raises(ValueError, match=named):
        make_sde(kind, **parameters)
