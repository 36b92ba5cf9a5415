"""What must hold for every input, tried on thousands of odd ones."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgc_experiments.batches import BatchOrder, from_model_range, to_model_range
from sgc_experiments.calibration import Calibration, class_prior, fit_calibration
from sgc_experiments.data.splits import low_data_subset, make_folds, make_split
from sgc_experiments.errors import UserError
from sgc_experiments.likelihood import log_odds_from_errors, make_draws, squared_errors
from sgc_experiments.metrics import (
    multiclass_metrics,
    probability_metrics,
    rank_metrics,
    roc_points,
)
from sgc_experiments.noise_levels import LogSNRDensity, stratified_uniforms
from sgc_experiments.objective import DenoisingScoreMatching
from sgc_experiments.score_network import ScoreNetwork
from sgc_experiments.sde import make_sde
from sgc_experiments.training_settings import Moment

quick = settings(deadline=None, max_examples=60, derandomize=True)
slowly = settings(deadline=None, max_examples=12, derandomize=True)

# The bounds of the command line's parameters.
SDES = st.one_of(
    st.builds(
        lambda kind, low, ratio, shift: make_sde(
            kind, beta_min=low, beta_max=min(low * ratio, 1000.0), log_snr_shift=shift
        ),
        st.sampled_from(["vp", "sub_vp"]),
        st.floats(1e-3, 100),
        st.floats(1.001, 1e4),
        st.floats(-20, 20),
    ),
    st.builds(
        lambda low, ratio, shift: make_sde(
            "ve", sigma_min=low, sigma_max=low * ratio, log_snr_shift=shift
        ),
        st.floats(1e-4, 1),
        st.floats(1.01, 1e4),
        st.floats(-20, 20),
    ),
    st.builds(lambda shift: make_sde("cosine", log_snr_shift=shift), st.floats(-20, 20)),
)
TIMES = hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(1e-5, 1))


@quick
@given(SDES, TIMES)
def test_every_sde_adds_noise_as_time_goes_on(sde, times):
    t = torch.from_numpy(np.sort(times))
    log_snr = sde.log_snr(t)
    alpha, sigma = sde.marginal_prob(t)
    drift, diffusion = sde.drift_and_diffusion(t)
    for values in (log_snr, alpha, sigma, drift, diffusion):
        assert values.isfinite().all()
    assert (log_snr.diff() <= 1e-9).all()
    assert ((alpha > 0) & (sigma > 0)).all()
    assert (diffusion >= 0).all()
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), log_snr, rtol=1e-9, atol=1e-6)
    assert math.isfinite(sde.prior_std())
    assert sde.prior_log_prob(torch.zeros(1, 1)).isfinite().all()


@quick
@given(SDES, st.floats(0.02, 0.98))
def test_time_is_the_inverse_of_log_snr(sde, t):
    log_snr = sde.log_snr(torch.tensor([t], dtype=torch.float64))
    again = sde.log_snr(sde.time(log_snr))
    torch.testing.assert_close(again, log_snr, rtol=1e-6, atol=1e-5)


@quick
@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=12),
    st.floats(-30, 29),
    st.integers(1, 64),
    st.integers(0, 2**31 - 1),
)
def test_levels_are_drawn_inside_their_range_and_weigh_as_much_as_it(masses, low, count, seed):
    edges = np.linspace(low, low + len(masses), len(masses) + 1)
    density = LogSNRDensity(edges.tolist(), masses)
    draws = make_draws((1, 1, 1), density, count, seed=seed)
    assert len(draws) == count
    assert ((draws.log_snr >= low - 1e-4) & (draws.log_snr <= edges[-1] + 1e-4)).all()
    assert (draws.weight > 0).all()
    assert draws.weight.isfinite().all()
    # ∫ q / q dλ, exactly where a draw stands for each stratum.
    mass = (draws.weight * density.density(draws.log_snr)).sum()
    torch.testing.assert_close(float(mass), 1.0, rtol=1e-4, atol=1e-4)


@quick
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 99))
def test_strata_share_the_draws(count, strata, seed):
    uniforms = stratified_uniforms(count, strata, torch.Generator().manual_seed(seed))
    assert uniforms.shape == (count,)
    assert ((uniforms >= 0) & (uniforms <= 1)).all()


@slowly
@given(
    st.integers(1, 10),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(["zeros", "constant", "bright", "noise"]),
    st.booleans(),
    st.sampled_from(["eps", "v", "x0"]),
)
def test_evidence_is_finite_for_any_image_and_number_of_classes(
    classes, blocks_across, batch, content, bf16, prediction
):
    """Down to a single block of pixels, in both precisions; one class is its own reference."""
    network = ScoreNetwork(classes, channels=(8,), patch=1, prediction=prediction)
    side = network.stride * blocks_across
    images = {
        "zeros": torch.zeros(batch, 1, side, side),
        "constant": torch.full((batch, 1, side, side), 0.37),
        "bright": torch.full((batch, 1, side, side), 1e3),
        "noise": torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(0)),
    }[content]
    draws = make_draws((1, side, side), LogSNRDensity.uniform(-20.0, 20.0), 4)
    torch.nn.init.normal_(network.head.weight)
    images = network.standardise(images)
    assert images.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        errors = squared_errors(network.eval(), images, draws)
    log_odds, standard_error = log_odds_from_errors(errors, draws)
    assert errors.shape == (batch, 4, classes)
    assert (errors >= 0).all()
    assert log_odds.isfinite().all()
    assert (log_odds[:, 0] == 0).all()
    assert (standard_error >= 0).all()


@slowly
@given(
    st.integers(1, 10),
    st.integers(1, 6),
    st.sampled_from(["simple", "elbo", "min_snr", "sigmoid"]),
    st.sampled_from(["uniform", "stratified", "importance"]),
    st.booleans(),
    st.sampled_from([0.0, 1.0]),
    st.data(),
)
def test_the_objective_is_finite_for_any_batch(
    classes, batch, weighting, sampling, bf16, hybrid_weight, data
):
    """Also for constant images and a batch of one class."""
    label = st.just(0) if data.draw(st.booleans()) else st.integers(0, classes - 1)
    labels = torch.tensor(data.draw(st.lists(label, min_size=batch, max_size=batch)))
    level = data.draw(st.sampled_from([-1.0, 0.0, 1.0, None]))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 1, 4, 4, generator=generator)
    images = images if level is None else torch.full_like(images, level)
    network = ScoreNetwork(classes, channels=(8,), patch=1)
    objective = DenoisingScoreMatching(
        make_sde("vp"),
        log_snr_min=-4.0,
        log_snr_max=10.0,
        weighting=weighting,
        log_snr_sampling=sampling,
        hybrid_weight=hybrid_weight,
        label_dropout=0.3,
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, metrics = objective.loss(network, images, labels, generator, Moment(0, 0.0))
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(math.isfinite(value) for value in metrics.values())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@quick
@given(st.integers(1, 10), st.integers(0, 40), st.data())
def test_posteriors_are_probabilities_whatever_the_evidence(classes, images, data):
    finite = st.floats(-1e6, 1e6)
    log_odds = data.draw(hnp.arrays(np.float64, (images, classes), elements=finite))
    log_odds[:, :1] = 0
    label = st.just(classes - 1) if data.draw(st.booleans()) else st.integers(0, classes - 1)
    labels = np.array(data.draw(st.lists(label, min_size=images, max_size=images)), np.int64)
    for calibration in (Calibration.identity(classes), fit_calibration(log_odds, labels)):
        assert 0 < calibration.temperature < math.inf
        posterior = calibration.posterior(log_odds, class_prior(labels, classes))
        assert posterior.shape == (images, classes)
        assert ((posterior >= 0) & (posterior <= 1)).all()
        np.testing.assert_allclose(posterior.sum(1), 1)


@st.composite
def scored(draw):
    count = draw(st.integers(1, 40))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    scores = draw(hnp.arrays(np.float64, count, elements=st.floats(-50, 50)))
    if draw(st.booleans()):
        scores = np.round(scores / 20)  # many ties
    weights = draw(hnp.arrays(np.float64, (3, count), elements=st.integers(0, 4).map(float)))
    return labels, scores, weights


@quick
@given(scored())
def test_metrics_stay_in_their_range_or_do_not_exist(case):
    labels, scores, weights = case
    ranks = rank_metrics(labels, scores, weights)
    probabilities = probability_metrics(labels, scores, weights)
    for name, values in (ranks | probabilities).items():
        known = values[~np.isnan(values)]
        assert (known >= -1e-9).all(), name
        if name != "log_loss":
            assert (known <= 1 + 1e-9).all(), name
    for row, auc in zip(weights, ranks["auc"], strict=True):
        both = (row[labels == 1].sum() > 0) and (row[labels == 0].sum() > 0)
        assert np.isnan(auc) != both
    flipped = rank_metrics(1 - labels, -scores, weights)["auc"]
    np.testing.assert_allclose(flipped, ranks["auc"], atol=1e-9)
    stretched = rank_metrics(labels, 4 * scores, weights)["auc"]
    np.testing.assert_allclose(stretched, ranks["auc"], atol=1e-9)


@quick
@given(scored())
def test_a_roc_curve_rises_from_corner_to_corner(case):
    labels, scores, weights = case
    false, true = roc_points(labels, scores, weights)
    for rates in (false, true):
        known = rates[~np.isnan(rates).any(axis=1)]
        assert (np.diff(known, axis=1) >= -1e-12).all()
        assert np.allclose(known[:, -1:], 1)


@quick
@given(st.integers(1, 10), st.integers(1, 30), st.data())
def test_metrics_of_many_classes_stay_in_their_range(classes, images, data):
    labels = np.array(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    )
    raw = data.draw(hnp.arrays(np.float64, (images, classes), elements=st.floats(0, 1)))
    probabilities = (raw + 1e-12) / (raw + 1e-12).sum(1, keepdims=True)
    for name, values in multiclass_metrics(labels, probabilities, np.ones((1, images))).items():
        known = values[~np.isnan(values)]
        assert (known >= -1e-9).all(), name
        assert name in ("log_loss", "brier") or (known <= 1 + 1e-9).all(), name


@st.composite
def tables(draw):
    patients = draw(st.integers(1, 60))
    views = draw(st.integers(1, 4))
    label = st.just(0) if draw(st.booleans()) else st.integers(0, 1)
    labels = draw(st.lists(label, min_size=patients, max_size=patients))
    rows = [
        {"image_id": f"{p}-{v}", "patient": f"p{p}", "label": labels[p], "official_split": ""}
        for p in range(patients)
        for v in range(views)
    ]
    return pd.DataFrame(rows)


@quick
@given(
    tables(),
    st.integers(0, 2**31 - 1),
    st.floats(0.01, 0.6),
    st.floats(0.01, 0.3),
    st.integers(2, 6),
    st.integers(4, 30),
)
def test_a_split_shares_no_patient_and_loses_no_image_or_says_why(
    table, seed, test, validation, folds, n_patients
):
    splits, refusal = [], ""
    try:
        split = make_split(table, seed=seed, validation_fraction=validation, test_fraction=test)
        splits = [split, low_data_subset(split, n_patients=n_patients, seed=seed)]
        splits += make_folds(table, folds=folds, seed=seed, validation_fraction=validation)
    except UserError as error:
        splits, refusal = [], str(error)
    if not splits:
        assert "patient" in refusal
        return
    tested = []
    for number, split in enumerate(splits):
        manifest = split.manifest
        assert manifest.groupby("patient")["subset"].nunique().max() == 1
        assert set(manifest["subset"]) == {"train", "validation", "test"}
        assert (manifest.groupby("subset")["label"].nunique() == 2).all()
        if number != 1:
            assert sorted(manifest["image_id"]) == sorted(table["image_id"])
        if number > 1:
            tested += list(manifest.loc[manifest["subset"] == "test", "image_id"])
    assert sorted(tested) == sorted(table["image_id"])


@quick
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 99),
)
def test_an_order_of_batches_visits_every_image(labels, batch_size, balanced, seed):
    labels = np.array(labels)
    order = BatchOrder(labels, batch_size=batch_size, balanced=balanced, seed=seed)
    # Each of up to eleven groups takes its turns.
    steps = math.ceil(12 * len(labels) / batch_size) + 1
    seen = np.concatenate([order.batch(step) for step in range(steps)])
    assert set(seen) == set(range(len(labels)))


@quick
@given(hnp.arrays(np.uint16, st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9))))
def test_pixels_survive_the_way_to_the_model_and_back(images):
    x = to_model_range(images)
    assert x.shape == (len(images), 1, *images.shape[1:])
    assert ((x >= -1) & (x <= 1)).all()
    np.testing.assert_array_equal(from_model_range(x), images)


def test_the_extremes_of_every_sde_are_refused_or_finite():
    for parameters in ({"beta_min": 0.0}, {"beta_max": math.inf}, {"log_snr_shift": math.nan}):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            make_sde("vp", **parameters)
