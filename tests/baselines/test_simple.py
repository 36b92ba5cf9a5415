"""The floor under every comparison: features without learning, and the majority class."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from baselines.simple import LogisticRegressionClassifier, MajorityClassifier, simple_features
from sgc_experiments.training_settings import TrainingSettings
from tests.baselines.pictures import SIZE, discs

SETTINGS = TrainingSettings(progress=False)
UNBALANCED = TrainingSettings(progress=False, balanced=False)


def _fitted(kind, settings=SETTINGS, **pictures):
    classifier = kind(image_size=SIZE)
    result = classifier.fit(
        discs(120, seed=0, **pictures), discs(60, seed=1, **pictures), settings=settings
    )
    return classifier, result


def test_logistic_regression_sees_brightness_and_chooses_its_penalty_on_validation():
    classifier, result = _fitted(LogisticRegressionClassifier)
    test = discs(100, seed=2)
    log_odds = classifier.predict_log_odds(test.images).log_odds
    assert roc_auc_score(test.labels, log_odds[:, 1]) > 0.95
    assert result.best_value == min(row["validation_loss"] for row in result.history)


@pytest.mark.parametrize("settings", [SETTINGS, UNBALANCED])
def test_skewed_images_that_tell_nothing_get_log_odds_near_zero_and_the_prevalence(settings):
    skewed = {"malignant": 0.1, "contrast": 0.0}
    classifier, _ = _fitted(LogisticRegressionClassifier, settings, **skewed)
    log_odds = classifier.predict_log_odds(discs(200, seed=2, **skewed).images).log_odds
    assert np.median(log_odds[:, 1]) == pytest.approx(0, abs=0.6)
    assert classifier.posterior(log_odds)[:, 1].mean() == pytest.approx(0.1, abs=0.05)


def test_the_majority_class_answers_with_the_prevalence():
    classifier, _ = _fitted(MajorityClassifier, malignant=0.25)
    prediction = classifier.predict_log_odds(discs(7, seed=2).images)
    np.testing.assert_allclose(prediction.log_odds, 0, atol=1e-12)
    posterior = classifier.posterior(prediction.log_odds)
    np.testing.assert_allclose(posterior[:, 1], 0.25, atol=0.01)


@pytest.mark.parametrize("kind", [LogisticRegressionClassifier, MajorityClassifier])
def test_what_is_saved_answers_the_same(kind, tmp_path):
    classifier, _ = _fitted(kind)
    classifier.save(tmp_path)
    loaded = kind.load(tmp_path)
    images = discs(5, seed=3).images
    before, after = (c.predict_log_odds(images).log_odds for c in (classifier, loaded))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(classifier.posterior(before), loaded.posterior(after))


@pytest.mark.parametrize("size", [16, 24, 40])
def test_features_are_finite_at_any_size_even_of_an_empty_image(size):
    features = simple_features(np.zeros((size, size), np.uint16))
    assert features.shape == simple_features(np.zeros((96, 96), np.uint16)).shape
    assert np.isfinite(features).all()
