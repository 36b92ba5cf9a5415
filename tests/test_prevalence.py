"""The prevalence of images without labels is found from simulated and from real scores."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sgc_experiments.experiments.scoring import with_prevalence
from sgc_experiments.prevalence import estimate_prevalence


def simulated(count, prevalence, seed, separation=1.5):
    """Exact posteriors, for equal classes, of unit Gaussians around the classes' corners."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(len(prevalence), count, p=prevalence)
    corners = separation * np.eye(len(prevalence))
    x = generator.normal(size=(count, len(prevalence))) + corners[labels]
    log_likelihood = x @ corners.T
    odds = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True), labels


@pytest.mark.parametrize("prevalence", [(0.97, 0.03), (0.5, 0.5), (0.2, 0.8), (0.6, 0.3, 0.1)])
def test_the_prevalence_of_simulated_scores_is_found(prevalence):
    classes = len(prevalence)
    prior = np.full(classes, 1 / classes)
    found = [estimate_prevalence(simulated(600, prevalence, s)[0], prior) for s in range(20)]
    assert np.mean(found, axis=0) == pytest.approx(prevalence, abs=0.02)
    assert np.std(found, axis=0).max() < 0.06


def test_what_it_was_trained_on_does_not_matter():
    """Posteriors for another prior hold the same likelihoods."""
    even, _ = simulated(500, (0.8, 0.2), seed=0)
    prior = np.array([0.3, 0.7])
    skewed = even * prior
    skewed /= skewed.sum(1, keepdims=True)
    first = estimate_prevalence(even, np.array([0.5, 0.5]))
    assert estimate_prevalence(skewed, prior) == pytest.approx(first, abs=1e-3)


def test_scores_that_tell_nothing_leave_what_was_known():
    prior = np.array([0.9, 0.1])
    assert estimate_prevalence(np.tile(prior, (50, 1)), prior) == pytest.approx(prior)


def test_no_class_is_ruled_out():
    certain = np.tile([1.0, 0.0], (49, 1))
    assert estimate_prevalence(certain, np.array([0.5, 0.5])) == pytest.approx([0.99, 0.01])


def test_weights_are_copies_of_images():
    posterior, _ = simulated(60, (0.7, 0.3), seed=1)
    prior = np.array([0.5, 0.5])
    weights = np.random.default_rng(0).integers(0, 4, (3, 60)).astype(float)
    together = estimate_prevalence(posterior, prior, weights)
    for row, found in zip(weights, together, strict=True):
        copies = np.repeat(posterior, row.astype(int), axis=0)
        assert estimate_prevalence(copies, prior) == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_prevalence_of_real_scores_is_found(share):
    """Noisy handwritten digits, from 5 on against below, learnt at their own shares."""
    images, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    images = images + generator.normal(size=images.shape) * 6
    labels = (labels >= 5).astype(int)
    order = generator.permutation(len(labels))
    train, rest = order[:900], order[900:]
    model = LogisticRegression(C=0.001, max_iter=500).fit(images[train], labels[train])
    prior = np.bincount(labels[train]) / len(train)
    high, low = rest[labels[rest] == 1], rest[labels[rest] == 0]
    most = min(len(high) / share, len(low) / (1 - share))
    chosen = np.concatenate([high[: round(share * most)], low[: round((1 - share) * most)]])
    posterior = model.predict_proba(images[chosen])
    assert estimate_prevalence(posterior, prior)[1] == pytest.approx(share, abs=0.08)
    if share != 0.5:  # the mean of the posteriors is drawn towards what was trained on
        assert abs(posterior[:, 1].mean() - share) > 0.2


def test_a_table_takes_another_prevalence():
    log_odds = np.array([-2.0, 0.0, 1.0])
    table = pd.DataFrame({"probability": expit(log_odds), "log_odds": log_odds, "label": 0})
    moved = with_prevalence(table, ("benign", "malignant"), (0.5, 0.5), (0.9, 0.1))
    assert moved["log_odds"].to_numpy() == pytest.approx(log_odds - np.log(9))
    assert moved["probability"].to_numpy() == pytest.approx(expit(log_odds - np.log(9)))
    assert moved["label"].tolist() == [0, 0, 0]
    names = ("a", "b", "c")
    probabilities = np.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    several = pd.DataFrame(
        {f"probability_{n}": probabilities[:, k] for k, n in enumerate(names)}
        | {f"log_odds_{n}": np.log(probabilities[:, k] / probabilities[:, 0])
           for k, n in enumerate(names[1:], start=1)}
    )  # fmt: skip
    moved = with_prevalence(several, names, (1 / 3, 1 / 3, 1 / 3), (0.6, 0.2, 0.2))
    expected = probabilities * (0.6, 0.2, 0.2)
    expected /= expected.sum(1, keepdims=True)
    found = moved[[f"probability_{n}" for n in names]].to_numpy()
    assert found == pytest.approx(expected)
