"""The statements of docs/mathematics.md that no other test makes, and the names that it quotes."""

import importlib
import re

import pytest
import torch

from sgc_experiments.likelihood import elbo, make_draws
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.probability_flow import hutchinson_trace, make_probes
from sgc_experiments.score_network import PREDICTIONS, alpha_sigma, predicted_noise
from sgc_experiments.sde import make_sde
from tests.conftest import ROOT
from tests.exact_classes import unequal_covariances

PAGE = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")


def test_every_function_that_the_page_names_is_there():
    names = re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", PAGE)
    assert len(names) > 15
    for module, name in names:
        assert hasattr(importlib.import_module(f"sgc_experiments.{module}"), name), name


def test_every_test_that_the_page_names_is_there():
    defects = (ROOT / "tests" / "test_published_defects.py").read_text(encoding="utf-8")
    named = re.findall(r"`(test_defect_\w+)`", PAGE)
    assert named == re.findall(r"^def (test_defect_\w+)\(", defects, re.MULTILINE)
    assert len(named) == 5
    for path in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (ROOT / path).exists(), path


def test_formulas_read_alike_on_github_and_in_the_built_page():
    """GitHub takes backslashes before punctuation and bars in tables away from a formula."""
    formulas = re.findall(r"\$\$?([^$]+)\$\$?", PAGE)
    assert len(formulas) > 100
    for formula in formulas:
        assert not re.search(r"\\[^A-Za-z\\ ]", formula), formula
    for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE):
        assert not any("|" in formula for formula in re.findall(r"\$([^$]+)\$", row)), row


# The table of section 1, in the page's own words.
SCHEDULES = {
    "vp": lambda b, beta, t: (-b / 2, -torch.log(b.exp() - 1), -beta / (1 - (-b).exp())),
    "sub_vp": lambda b, beta, t: (
        -b / 2,
        -b - 2 * torch.log(1 - (-b).exp()),
        -beta * (1 + (-b).exp()) / (1 - (-b).exp()),
    ),
    "ve": lambda b, beta, t: (
        0 * t,
        -2 * torch.log(0.001 * (150 / 0.001) ** t),
        0 * t - 2 * torch.log(torch.tensor(150 / 0.001).double()),
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_table_of_schedules_is_the_codes(kind):
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    b, beta = 0.1 * t + 0.5 * t**2 * 19.9, 0.1 + t * 19.9
    sde = make_sde(kind)
    log_alpha, log_snr, rate = SCHEDULES[kind](b, beta, t)
    torch.testing.assert_close(sde.marginal_prob(t)[0].log(), log_alpha)
    torch.testing.assert_close(sde.log_snr(t), log_snr)
    torch.testing.assert_close(sde.log_snr_rate(t), rate)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_errors_of_the_three_predictions_are_proportional(prediction):
    """Section 2: ε − ε̂ = −e^{λ/2} (x − x̂) = α (v − v̂)."""
    generator = torch.Generator().manual_seed(0)
    x, noise, output = torch.randn(3, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    log_snr = torch.linspace(-3, 4, 5, dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr, x)
    z = alpha * x + sigma * noise
    error = noise - predicted_noise(prediction, output, z, log_snr)
    target = {"eps": noise, "x0": x, "v": alpha * noise - sigma * x}[prediction]
    factor = {"eps": torch.ones_like(alpha), "x0": -alpha / sigma, "v": alpha}[prediction]
    torch.testing.assert_close(error, factor * (target - output))


def test_the_evidence_of_a_band_is_a_difference_of_expected_log_odds():
    """Section 5: of the image seen through the noise of the band's two ends."""
    truth = unequal_covariances(6)
    x = truth.sample(torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    low, high = -1.0, 3.0
    draws = make_draws((6,), LogSNRDensity.uniform(low, high), 20_000, antithetic=True)
    result = elbo(truth, x, draws, batch_size=40_000)

    noise = torch.randn(40_000, 6, generator=torch.Generator().manual_seed(1)).double()
    noise = torch.cat([noise, -noise])
    for image, estimate, error in zip(x, result.log_odds, result.log_odds_error, strict=True):
        (noisy, noisy_variance), (clean, clean_variance) = (
            _log_odds(truth, image, at, noise) for at in (low, high)
        )
        expected = clean - noisy
        spread = (error[1] ** 2 + noisy_variance + clean_variance) ** 0.5
        assert spread < 0.05
        assert abs(float(estimate[1] - expected)) < 3 * float(spread)


def _log_odds(truth, image, log_snr, noise):
    """Mean over ε of log p(z | 1) − log p(z | 0), and the variance of that mean."""
    level = torch.full((len(noise),), log_snr, dtype=torch.float64)
    alpha, sigma = alpha_sigma(level, noise)
    z = alpha * image + sigma * noise
    both = [truth._components(z, level, torch.full((len(z),), c))[0].logsumexp(1) for c in range(2)]
    values = both[1] - both[0]
    pairs = (values[: len(z) // 2] + values[len(z) // 2 :]) / 2
    return pairs.mean(), pairs.var() / len(pairs)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_variance_of_hutchinsons_estimate_is_the_stated_one(probe):
    """Section 6: 2 ‖A‖² of the symmetric part for Gaussian probes, without its diagonal else."""
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    symmetric = (jacobian + jacobian.mT) / 2
    squares = symmetric.square()
    stated = 2 * float(squares.sum() - (squares.diag().sum() if probe == "rademacher" else 0))
    probes = make_probes(probe, 100_000, torch.Size([5]), seed=0).double()
    z = torch.zeros(len(probes), 5, dtype=torch.float64)
    _, estimates = hutchinson_trace(lambda z: z @ jacobian.mT, z, probes)
    assert float(estimates.var()) == pytest.approx(stated, rel=0.03)
