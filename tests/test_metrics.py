"""The metrics equal scikit-learn's for any weights, and the chosen thresholds keep their word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sk

from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import choose_thresholds
from sgc_experiments.metrics import (
    TARGET_RATES,
    multiclass_metrics,
    precision_recall_points,
    probability_metrics,
    rank_metrics,
    roc_points,
    threshold_metrics,
)


@pytest.fixture(params=["distinct", "tied", "constant"])
def case(request):
    """Labels, log-odds and three rows of integer weights, some of them 0."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    log_odds = rng.normal(size=60) + labels
    if request.param == "tied":
        log_odds = np.round(log_odds)
    if request.param == "constant":
        log_odds = np.full(60, -0.7)
    return labels, log_odds, rng.integers(0, 4, (3, 60)).astype(float)


def test_rank_metrics_equal_sklearn_with_weights(case):
    labels, log_odds, weights = case
    ours = rank_metrics(labels, log_odds, weights)
    for b, w in enumerate(weights):
        assert ours["auc"][b] == pytest.approx(sk.roc_auc_score(labels, log_odds, sample_weight=w))
        assert ours["average_precision"][b] == pytest.approx(
            sk.average_precision_score(labels, log_odds, sample_weight=w)
        )
        assert ours["partial_auc"][b] == pytest.approx(
            sk.roc_auc_score(labels, log_odds, sample_weight=w, max_fpr=0.2)
        )


def test_probability_metrics_equal_sklearn_with_weights(case):
    labels, log_odds, weights = case
    p = expit(log_odds)
    ours = probability_metrics(labels, log_odds, weights)
    for b, w in enumerate(weights):
        assert ours["brier"][b] == pytest.approx(sk.brier_score_loss(labels, p, sample_weight=w))
        assert ours["log_loss"][b] == pytest.approx(sk.log_loss(labels, p, sample_weight=w))
        assert ours["accuracy"][b] == pytest.approx(
            sk.accuracy_score(labels, p >= 0.5, sample_weight=w)
        )
        assert ours["prevalence"][b] == pytest.approx(np.average(labels, weights=w))


def test_decisions_equal_sklearn_with_weights(case):
    labels, log_odds, weights = case
    p = expit(log_odds)
    thresholds = choose_thresholds(labels, p)
    ours = threshold_metrics(labels, p, thresholds, weights)
    positive = p >= thresholds["balanced"]
    strict = p >= thresholds["specificity_90"]
    for b, w in enumerate(weights):
        recall = sk.recall_score(labels, positive, sample_weight=w)
        assert ours["sensitivity"][b] == pytest.approx(recall)
        assert ours["balanced_accuracy"][b] == pytest.approx(
            sk.balanced_accuracy_score(labels, positive, sample_weight=w)
        )
        assert ours["sensitivity_at_90_specificity"][b] == pytest.approx(
            sk.recall_score(labels, strict, sample_weight=w, zero_division=0)
        )
        assert ours["sensitivity_at_90_specificity/achieved"][b] == pytest.approx(
            sk.recall_score(labels, strict, sample_weight=w, pos_label=0)
        )


def test_curves_equal_sklearn(case):
    labels, log_odds, _ = case
    once = np.ones((1, len(labels)))
    fpr, tpr, _ = sk.roc_curve(labels, log_odds, drop_intermediate=False)
    ours = roc_points(labels, log_odds, once)
    np.testing.assert_allclose(ours[0][0], fpr)
    np.testing.assert_allclose(ours[1][0], tpr)
    precision, recall, _ = sk.precision_recall_curve(labels, log_odds)
    ours = precision_recall_points(labels, log_odds, once)
    np.testing.assert_allclose(ours[0][0], recall[:-1][::-1])
    np.testing.assert_allclose(ours[1][0], precision[:-1][::-1])


def test_multiclass_equals_sklearn_with_weights():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 80)
    p = rng.dirichlet(np.ones(4), 80)
    weights = rng.integers(1, 4, (2, 80)).astype(float)
    ours = multiclass_metrics(labels, p, weights)
    for b, w in enumerate(weights):
        expected = sk.roc_auc_score(labels, p, sample_weight=w, multi_class="ovr", average="macro")
        assert ours["macro_auc"][b] == pytest.approx(expected)
        assert ours["log_loss"][b] == pytest.approx(sk.log_loss(labels, p, sample_weight=w))
        assert ours["accuracy"][b] == pytest.approx(
            sk.accuracy_score(labels, p.argmax(1), sample_weight=w)
        )
        assert ours["balanced_accuracy"][b] == pytest.approx(
            sk.balanced_accuracy_score(labels, p.argmax(1), sample_weight=w)
        )


def test_two_classes_as_multiclass_give_the_same_auc_and_loss():
    rng = np.random.default_rng(0)
    labels, log_odds = rng.integers(0, 2, 50), rng.normal(size=50)
    once = np.ones((1, 50))
    p = expit(log_odds)
    several = multiclass_metrics(labels, np.column_stack([1 - p, p]), once)
    two = probability_metrics(labels, log_odds, once) | rank_metrics(labels, log_odds, once)
    assert several["macro_auc"] == pytest.approx(two["auc"])
    assert several["log_loss"] == pytest.approx(two["log_loss"])
    assert several["brier"] == pytest.approx(2 * two["brier"])


def test_calibration_error_by_hand():
    # Bin 0.2-0.3: three images at 0.25, one malignant. Bin 0.9-1: one image at 0.9, benign.
    p = np.array([0.25, 0.25, 0.25, 0.9])
    labels = np.array([1, 0, 0, 0])
    ece = probability_metrics(labels, np.log(p / (1 - p)), np.ones((1, 4)))["ece"][0]
    assert ece == pytest.approx(3 / 4 * abs(0.25 - 1 / 3) + 1 / 4 * 0.9)


def test_a_resample_without_a_class_is_undefined_not_wrong():
    labels, scores = np.array([0, 0, 1]), np.array([0.1, 0.4, 0.3])
    weights = np.array([[1.0, 1, 0], [0, 0, 1], [1, 1, 1]])
    ranks = rank_metrics(labels, scores, weights)
    for values in ranks.values():
        assert np.isnan(values).tolist() == [True, True, False]
    rates = threshold_metrics(labels, expit(scores), choose_thresholds(labels, scores), weights)
    assert np.isnan(rates["sensitivity"]).tolist() == [True, False, False]
    assert np.isnan(rates["specificity"]).tolist() == [False, True, False]


def test_a_confident_error_has_a_finite_loss():
    loss = probability_metrics(np.array([0, 1]), np.array([800.0, 5.0]), np.ones((1, 2)))
    assert loss["log_loss"][0] == pytest.approx((800 + np.log1p(np.exp(-5))) / 2)


scores = st.lists(st.integers(-6, 6), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 2**32 - 1))
def test_invariances(values, seed):
    """Monotone maps and the order of rows change no rank metric; reversal mirrors the AUC."""
    rng = np.random.default_rng(seed)
    scores = np.array(values, dtype=float)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, len(scores) - 2)])
    weights = rng.integers(0, 3, (4, len(scores))).astype(float)
    plain = rank_metrics(labels, scores, weights)
    mapped = rank_metrics(labels, np.exp(scores / 3) - 7, weights)
    order = rng.permutation(len(scores))
    shuffled = rank_metrics(labels[order], scores[order], weights[:, order])
    for name, value in plain.items():
        np.testing.assert_allclose(mapped[name], value, atol=1e-12)
        np.testing.assert_allclose(shuffled[name], value, atol=1e-12)
    mirrored = rank_metrics(labels, -scores, weights)
    np.testing.assert_allclose(mirrored["auc"], 1 - plain["auc"], atol=1e-12)
    # A weight of two is an image that is there twice.
    twice = rank_metrics(np.tile(labels, 2), np.tile(scores, 2), np.ones((1, 2 * len(labels))))
    once = rank_metrics(labels, scores, np.full((1, len(labels)), 2.0))
    assert twice["auc"] == pytest.approx(once["auc"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=25), st.integers(0, 2**32 - 1))
def test_thresholds_keep_their_promise(values, seed):
    """On the images they were chosen on, thresholds reach their rate, and no better one exists."""
    p = np.array(values)
    labels = np.concatenate([[0, 1], np.random.default_rng(seed).integers(0, 2, len(p) - 2)])
    chosen = choose_thresholds(labels, p)

    def rates(threshold):
        positive = p >= threshold
        return positive[labels == 1].mean(), (~positive)[labels == 0].mean()

    candidates = [*p, 2.0]
    for rate in TARGET_RATES:
        sensitivity, specificity = rates(chosen[f"specificity_{rate}"])
        assert specificity >= rate / 100 - 1e-9
        allowed = [rates(c)[0] for c in candidates if rates(c)[1] >= rate / 100 - 1e-9]
        assert sensitivity == pytest.approx(max(allowed))
        sensitivity, specificity = rates(chosen[f"sensitivity_{rate}"])
        assert sensitivity >= rate / 100 - 1e-9
        allowed = [rates(c)[1] for c in candidates if rates(c)[0] >= rate / 100 - 1e-9]
        assert specificity == pytest.approx(max(allowed))
    best = max(sum(rates(c)) for c in candidates)
    assert sum(rates(chosen["balanced"])) == pytest.approx(best)


def test_thresholds_need_both_classes():
    with pytest.raises(UserError, match="one class only"):
        choose_thresholds([1, 1, 1], [0.1, 0.5, 0.9])
