"""The probability-flow ODE against exact answers, on every SDE."""

import math

import pytest
import torch

from sgc_experiments.probability_flow import (
    OdeSettings,
    exact_trace,
    hutchinson_trace,
    make_probes,
    probability_flow_ode,
)
from sgc_experiments.sde import make_sde
from tests.exact_classes import EXACT, unequal_covariances

# Far enough into the noise for the prior to hold for means that are not 0.
SDES = {
    "vp": {"beta_max": 32.0},
    "cosine": {"log_snr_min": -16.0},
    "log_snr": {"log_snr_knots": (14.0, 3.0, -3.0, -16.0)},
    "sub_vp": {"beta_max": 32.0},
    "ve": {"sigma_max": 3000.0},
}
CLEAN = 14.0  # log-SNR below whose noise the exact classes have no detail


def images_of(truth, count=3):
    labels = torch.arange(count) % truth.classes
    return truth.sample(labels, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", ["dopri5", "heun", "rk4"])
@pytest.mark.parametrize("kind", SDES)
def test_bits_per_dim_and_log_odds_are_exact(kind, solver):
    truth = EXACT["unequal"](3)
    x = images_of(truth, 2)
    settings = OdeSettings(divergence="exact", solver=solver, steps=120, log_snr_max=CLEAN)
    result = probability_flow_ode(truth, make_sde(kind, **SDES[kind]), x, settings=settings)
    exact = truth.log_prob(x)
    error = (result.log_likelihood - exact) / 3 / math.log(2)
    assert error.abs().max() < 0.001
    odds = (exact - exact[:, :1])[:, 1]
    assert ((result.log_odds[:, 1] - odds).abs() < 0.01 * odds.abs()).all()
    assert (result.standard_error == 0).all()


@pytest.mark.parametrize("name", EXACT)
def test_every_kind_of_class_is_exact(name):
    truth = EXACT[name](5)
    x = images_of(truth)
    settings = OdeSettings(divergence="exact", solver="heun", steps=150, log_snr_max=CLEAN)
    sde = make_sde("cosine", **SDES["cosine"])
    result = probability_flow_ode(truth, sde, x, settings=settings)
    error = (result.log_likelihood - truth.log_prob(x)) / 5 / math.log(2)
    assert error.abs().max() < 0.001


def test_hutchinson_log_odds_are_within_their_errors():
    truth = unequal_covariances(8)
    x = images_of(truth, 4)
    settings = OdeSettings(solver="heun", steps=100, probes=64, probe="gaussian", log_snr_max=CLEAN)
    sde = make_sde("cosine", **SDES["cosine"])
    result = probability_flow_ode(truth, sde, x, settings=settings, batch_size=4096)
    exact = truth.log_prob(x)
    assert ((result.log_likelihood - exact).abs() < 3.5 * result.standard_error).all()
    odds = (exact - exact[:, :1])[:, 1]
    assert ((result.log_odds[:, 1] - odds).abs() < 3.5 * result.log_odds_error[:, 1]).all()
    assert result.evaluations.tolist() == [2 * 100 * 2 * 64] * 4


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_against_the_exact_trace(probe):
    truth = unequal_covariances(6)
    z = images_of(truth, 1)
    level = torch.zeros(1).double()

    def function(z):
        return truth(z, level.expand(len(z)), torch.zeros(len(z), dtype=torch.long))

    value, exact = exact_trace(function, z)
    torch.testing.assert_close(value, function(z))
    probes = make_probes(probe, 4000, z.shape[1:], seed=0).double()
    _, estimates = hutchinson_trace(function, z.expand(4000, -1), probes)
    error = estimates.std() / 4000**0.5
    assert abs(float(estimates.mean() - exact)) < 3 * float(error)


@pytest.mark.parametrize("solver", ["dopri5", "heun", "rk4"])
def test_an_image_alone_gets_the_answer_it_gets_in_a_batch(solver):
    truth = unequal_covariances(4)
    # One image is far from the others: a shared step size would follow it.
    x = torch.cat([images_of(truth, 2), 20 * images_of(truth, 1)])
    settings = OdeSettings(solver=solver, tolerance=1e-3, steps=10)
    together = probability_flow_ode(truth, make_sde("vp"), x, settings=settings)
    alone = probability_flow_ode(truth, make_sde("vp"), x[:1], settings=settings)
    torch.testing.assert_close(together.log_likelihood[:1], alone.log_likelihood)


def test_classes_share_their_probe():
    """Two classes that are one and the same have log-odds of exactly 0, not probe noise."""
    truth = EXACT["equal"](4)
    truth.means[1] = truth.means[0]
    result = probability_flow_ode(
        truth, make_sde("vp"), images_of(truth), settings=OdeSettings(tolerance=1e-3)
    )
    assert result.log_odds.abs().max() < 1e-9


def test_one_probe_has_no_standard_error():
    truth = EXACT["equal"](2)
    settings = OdeSettings(solver="heun", steps=2)
    result = probability_flow_ode(truth, make_sde("vp"), images_of(truth), settings=settings)
    assert result.standard_error.isnan().all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"divergence": "none"}, "divergence"),
        ({"probe": "uniform"}, "probe"),
        ({"probes": 0}, "probes"),
        ({"solver": "rk45"}, "solver"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"steps": 0}, "steps"),
        ({"log_snr_min": 3.0, "log_snr_max": 2.0}, "log_snr_min"),
    ],
)
def test_a_wrong_setting_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        OdeSettings(**arguments)


def test_levels_may_end_where_the_schedule_bends():
    truth = EXACT["unequal"](3)
    sde = make_sde("log_snr", log_snr_knots=(14.0, 3.0, -3.0, -16.0))
    settings = OdeSettings(solver="dopri5", log_snr_min=-3.0, log_snr_max=3.0)
    result = probability_flow_ode(truth, sde, images_of(truth, 2), settings=settings)
    assert result.log_odds.isfinite().all()


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("rk4", 4)])
def test_halving_the_steps_shows_the_order(solver, order):
    truth = EXACT["unequal"](3)
    x = images_of(truth, 2)

    def bits(steps, solver=solver):
        settings = OdeSettings(
            divergence="exact", solver=solver, steps=steps, log_snr_min=-8.0, log_snr_max=8.0
        )
        sde = make_sde("cosine", **SDES["cosine"])
        return probability_flow_ode(truth, sde, x.double(), settings=settings).log_likelihood

    limit = bits(400, "rk4")
    coarse, fine = ((bits(steps) - limit).abs().max() for steps in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)
