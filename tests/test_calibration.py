"""Calibration: what is known about the right temperature, offset and prior is found."""

from types import SimpleNamespace

import numpy as np
import pytest

from sgc_experiments.calibration import Calibration, class_prior, fit_calibration
from sgc_experiments.experiments.scoring import answer
from sgc_experiments.protocol import Prediction


def simulated(count, temperature, offset, prior, seed=0):
    """Log-odds that are right after division by `temperature` and adding `offset`."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(len(prior), count, p=prior)
    # Unit Gaussians in C dimensions with means 2 e_c: the log-odds are linear in x.
    x = generator.normal(size=(count, len(prior))) + 2 * np.eye(len(prior))[labels]
    log_odds = 2 * (x - x[:, :1])
    return (log_odds - np.array(offset)) * temperature, labels


@pytest.mark.parametrize(
    ("temperature", "offset", "prior"),
    [
        (40.0, (0.0, 1.5), (0.6, 0.4)),
        (0.2, (0.0, -1.0), (0.9, 0.1)),
        (7, (0, 1, -1), (0.3, 0.5, 0.2)),
    ],
)
def test_temperature_and_offset_are_found(temperature, offset, prior):
    log_odds, labels = simulated(6000, temperature, offset, prior)
    fitted = fit_calibration(log_odds, labels)
    assert fitted.temperature == pytest.approx(temperature, rel=0.08)
    assert fitted.offset == pytest.approx(offset, abs=0.25)


def test_calibration_makes_overconfident_evidence_reliable():
    log_odds, labels = simulated(8000, 30.0, (0.0, 0.0), (0.5, 0.5))
    fitted = fit_calibration(log_odds[:4000], labels[:4000])
    said = fitted.posterior(log_odds[4000:], (0.5, 0.5))[:, 1]
    truth = labels[4000:]
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (said >= low) & (said < low + 0.25)
        assert truth[inside].mean() == pytest.approx(said[inside].mean(), abs=0.12)


@pytest.mark.parametrize("log_odds", [np.zeros(40), np.random.default_rng(0).normal(size=40) * 1e3])
def test_evidence_that_tells_nothing_leaves_the_prevalence(log_odds):
    labels = np.array([0] * 30 + [1] * 10)
    log_odds = np.stack([np.zeros(40), np.random.default_rng(1).permutation(log_odds)], 1)
    fitted = fit_calibration(log_odds, labels)
    said = fitted.posterior(log_odds, class_prior(labels, 2))[:, 1]
    assert said.mean() == pytest.approx(0.25, abs=0.05)
    assert said.std() < 0.15


def test_the_order_of_images_never_changes():
    log_odds, labels = simulated(50, 100.0, (0.0, 0.0), (0.5, 0.5))
    said = fit_calibration(log_odds, labels).posterior(log_odds, (0.5, 0.5))[:, 1]
    assert np.array_equal(np.argsort(said), np.argsort(log_odds[:, 1]))


def test_a_given_prior_multiplies_the_odds():
    log_odds = np.array([[0.0, 0.7], [0.0, -3.0]])
    calibration = Calibration(0.5, (0.0, 0.3))
    even = calibration.posterior(log_odds, (1, 1))
    rare = calibration.posterior(log_odds, (0.95, 0.05))
    odds_ratio = (rare[:, 1] / rare[:, 0]) / (even[:, 1] / even[:, 0])
    assert odds_ratio == pytest.approx(0.05 / 0.95)
    assert rare.sum(1) == pytest.approx(1)


def test_huge_evidence_does_not_overflow():
    said = Calibration.identity(2).posterior(np.array([[0.0, 1e6], [0.0, -1e6]]), (1, 1))
    assert said[:, 1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("labels", [[], [1] * 5])
def test_no_images_or_one_class_still_calibrate(labels):
    log_odds = np.stack([np.zeros(len(labels)), np.arange(len(labels)) * 10.0], 1)
    fitted = fit_calibration(log_odds, np.array(labels, dtype=int))
    assert np.isfinite([fitted.temperature, *fitted.offset]).all()
    assert fitted.temperature > 0


@pytest.mark.parametrize("prior", [(0.5,), (0.0, 1.0), (-1.0, 2.0)])
def test_a_wrong_prior_is_named(prior):
    with pytest.raises(ValueError, match="prior"):
        Calibration.identity(2).posterior(np.zeros((1, 2)), prior)


@pytest.mark.parametrize(("classes", "column"), [(2, "log_odds"), (3, "log_odds_c1")])
def test_an_answer_ranks_where_the_posterior_rounds(classes, column):
    """Log-odds come from the evidence: those of a probability of 1 would be infinite, or equal."""
    evidence = np.zeros((4, classes))
    evidence[:, 1] = 900.0, 50.0, 60.0, -900.0
    calibration = Calibration(0.5, (0.0, 0.5, 0.0)[:classes])
    prior = np.arange(1.0, classes + 1) / sum(range(1, classes + 1))
    classifier = SimpleNamespace(
        classes=tuple(f"c{k}" for k in range(classes)),
        calibration=calibration,
        prior=prior,
        posterior=lambda log_odds, given: calibration.posterior(
            log_odds, prior if given is None else given
        ),
    )
    prediction = Prediction(evidence, np.zeros_like(evidence), 1)
    said = answer(classifier, np.empty((4, 8, 8)), prediction=prediction)
    expected = evidence[:, 1] * 2 + 0.5 + np.log(2)
    np.testing.assert_allclose(said[column], expected, rtol=1e-12)
    even = answer(classifier, np.empty((4, 8, 8)), prior=[1] * classes, prediction=prediction)
    np.testing.assert_allclose(even[column], expected - np.log(2), rtol=1e-12)
