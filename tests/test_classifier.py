"""The classifier: what is stored comes back, evidence is consistent, foreign images are told."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.batches import ImageSet, to_model_range
from sgc_experiments.calibration import Calibration
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.classifier_settings import ClassifierSettings
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation_plan import (
    EvaluationPlan,
    _placements,
    _standard_error,
    choose_band,
    mean_pairwise_auc,
    planning_draws,
)
from sgc_experiments.evidence import dequantised
from sgc_experiments.experiments.scoring import answer
from sgc_experiments.training import TrainingSettings
from sgc_experiments.uncertainty import in_doubt

TINY = {"image_size": 8, "channels": [8], "blocks": 1, "log_snr_min": -2.0, "log_snr_max": 6.0}
QUICK = TrainingSettings(budget="steps:20", batch_size=8, validate_every=10, progress=False)


def blobs(count, seed=0, size=8):
    """Class 1 is brighter on the left: learnt in a few steps."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.integers(20000, 40000, (count, size, size))
    images[labels == 1, :, : size // 2] += 15000
    return ImageSet(images.astype(np.uint16), labels)


@pytest.fixture(scope="module")
def fitted():
    model = ScoreBasedClassifier(**TINY)
    settings = TrainingSettings(
        budget="steps:80", batch_size=16, validate_every=40, progress=False,
        augmentation=AugmentationSettings(horizontal_flip=False),
    )  # fmt: skip
    model.fit(blobs(64), blobs(32, seed=1), settings=settings)
    return model


def test_an_easy_task_is_solved_and_calibrated(fitted):
    test = blobs(100, seed=2)
    log_odds = fitted.predict_log_odds(test.images).log_odds
    assert mean_pairwise_auc(log_odds, test.labels) > 0.95
    said = fitted.posterior(log_odds)[:, 1]
    assert np.mean((said > 0.5) == test.labels) > 0.85


def test_the_hybrid_objective_and_the_null_class_train():
    model = ScoreBasedClassifier(hybrid_weight=0.01, label_dropout=0.2, **TINY)
    images, labels = blobs(32)
    labels = np.where(np.arange(32) < 8, -1, labels)
    result = model.fit(ImageSet(images, labels), blobs(8, seed=1), settings=QUICK)
    assert result.steps == 20
    assert model.sample(2, 2, guidance=1.5).shape == (2, 8, 8)


def test_the_objective_is_that_of_the_settings():
    given = {
        "weighting": "sigmoid", "log_snr_sampling": "importance", "hybrid_weight": 0.3,
        "label_smoothing": 0.2, "label_dropout": 0.1,
    }  # fmt: skip
    objective = ScoreBasedClassifier(**TINY, **given).objective
    assert {name: getattr(objective, name) for name in given} == given
    assert (objective.low, objective.high) == (-2.0, 6.0)


def test_a_model_that_was_not_fitted_knows_nothing(tmp_path):
    assert ScoreBasedClassifier().settings == ClassifierSettings()
    model = ScoreBasedClassifier(("a", "b", "c"), **TINY, evaluations=18)
    model.save(tmp_path)
    for one in (model, ScoreBasedClassifier.load(tmp_path)):
        assert one.plan == EvaluationPlan(-2.0, 6.0, 6)
        assert one.calibration == Calibration.identity(3)
        assert one.prior.tolist() == pytest.approx([1 / 3] * 3)
        assert one.typical is None
        found = one.predict_log_odds(blobs(2).images)
        assert (found.log_odds == 0).all()
        assert found.out_of_distribution is None


def test_fit_passes_on_what_training_is_told(tmp_path):
    seen = []
    result = ScoreBasedClassifier(**TINY).fit(
        blobs(24), blobs(8, seed=1), settings=QUICK, checkpoint_dir=tmp_path,
        on_step=lambda metrics, step: seen.append(step), should_stop=lambda: bool(seen),
    )  # fmt: skip
    assert (result.stopped, result.steps, seen) == ("interrupted", 10, [10])
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize(("limit", "fitted"), [(256, 20), (12, 4), (8, 0), (6, 0)])
def test_few_validation_images_are_joined_by_labelled_training_images(monkeypatch, limit, fitted):
    asked = []

    def choose(errors, log_snr, labels, low, high, *, draws):
        asked.append(labels.tolist())
        return low, high

    monkeypatch.setattr("sgc_experiments.classifier.choose_band", choose)
    monkeypatch.setattr("sgc_experiments.classifier._PLANNING_IMAGES", limit)
    train, validation = blobs(24), blobs(8, seed=1)
    train.labels[[3, 10, 12, 21]] = -1
    known = train.labels[train.labels >= 0]
    ScoreBasedClassifier(**TINY).fit(train, validation, settings=QUICK)
    spread = known[np.linspace(0, len(known) - 1, fitted).astype(int)]
    assert asked == [[*validation.labels[:limit], *spread]]


def test_the_plan_is_chosen_on_validation_images(monkeypatch):
    asked = []

    def choose(errors, log_snr, labels, low, high, *, draws):
        asked.append((tuple(errors.shape), len(log_snr), labels.tolist(), low, high, draws))
        return 0.0, 3.0

    monkeypatch.setattr("sgc_experiments.classifier.choose_band", choose)
    validation, flips = blobs(8, seed=1), (0, 1, 2, 3)
    model = ScoreBasedClassifier(**TINY)
    model.fit(blobs(24), validation, settings=QUICK)
    labels = [*validation.labels.tolist(), *blobs(24).labels.tolist()]
    assert asked == [((32, 64, 2), 64, labels, -2.0, 6.0, 16)]
    assert model.plan == EvaluationPlan(0.0, 3.0, 16, flips)
    one_class = ImageSet(validation.images, np.zeros(8, int))
    nobody = ImageSet(validation.images[:0], validation.labels[:0])
    for others in (one_class, nobody):
        model.fit(blobs(24), others, settings=QUICK)
        assert model.plan == EvaluationPlan(-2.0, 6.0, 16, flips)
    assert len(asked) == 1
    assert model.calibration == Calibration.identity(2)
    assert model.typical is None


def test_training_pixels_get_mean_0_and_variance_1():
    model = ScoreBasedClassifier(**TINY)
    images = blobs(5).images
    model._standardise_to(images)
    x = model.network.standardise(to_model_range(images))
    assert (float(x.mean()), float(x.std())) == pytest.approx((0, 1), abs=1e-4)
    model._standardise_to(np.full((3, 8, 8), 30000, np.uint16))
    assert float(model.network.pixel_std) == pytest.approx(1e-3)


def test_same_seed_same_model_and_same_answers():
    answers = []
    once = ScoreBasedClassifier(**TINY)
    for model in (once, ScoreBasedClassifier(**TINY), once):
        model.fit(blobs(24), blobs(8, seed=1), settings=QUICK)
        answers.append(model.predict_log_odds(blobs(5, seed=2).images).log_odds)
    assert np.array_equal(*answers[:2])
    assert np.array_equal(*answers[1:])  # what was fitted before leaves no trace


def test_a_saved_model_answers_alike(fitted, tmp_path):
    images = blobs(9, seed=3).images
    fitted.save(tmp_path / "model")
    loaded = ScoreBasedClassifier.load(tmp_path / "model")
    first, second = (m.predict_log_odds(images) for m in (fitted, loaded))
    assert np.array_equal(first.log_odds, second.log_odds)
    assert np.array_equal(first.out_of_distribution, second.out_of_distribution)
    assert loaded.typical == fitted.typical
    assert np.array_equal(fitted.posterior(first.log_odds), loaded.posterior(second.log_odds))
    assert loaded.settings == fitted.settings
    assert loaded.plan == fitted.plan
    assert not loaded.network.training
    assert loaded.to("cpu") is loaded
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "pickle", "kind"])
def test_a_model_that_is_not_sound_is_refused(fitted, tmp_path, damage):
    fitted.save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "other":
        tensors = load_file(weights)
        tensors["head.bias"] = tensors["head.bias"][:1].clone()
        save_file(tensors, weights)
    elif damage == "pickle":
        torch.save({"network": 1}, weights)
    else:
        config.write_text(config.read_text().replace('"sgc"', '"resnet18"'))
    unsound = r"holds no sound model of this version \(\w+\): save or download it again\.$"
    with pytest.raises(UserError, match="of kind 'resnet18'" if damage == "kind" else unsound):
        ScoreBasedClassifier.load(tmp_path)


def test_an_image_alone_gets_the_answer_it_gets_in_a_batch(fitted):
    images = blobs(12, seed=4).images
    together = fitted.predict_log_odds(images)
    alone = fitted.predict_log_odds(images[7:8])
    assert alone.log_odds[0] == pytest.approx(together.log_odds[7], abs=1e-3)
    assert alone.standard_error[0] == pytest.approx(together.standard_error[7], abs=1e-3)


def test_low_precision_changes_answers_by_little(fitted, monkeypatch):
    images, answers = blobs(64, seed=6).images, []
    for low in (False, True):
        monkeypatch.setattr("sgc_experiments.evidence.has_fast_bf16", lambda *_, low=low: low)
        answers.append(fitted.predict_log_odds(images).log_odds[:, 1])
    fine, coarse = answers
    assert (fine != coarse).any()
    assert np.sqrt(np.mean((fine - coarse) ** 2)) < 0.05 * fine.std()


def test_maps_sum_to_the_log_odds_and_point_at_the_evidence(fitted):
    images = blobs(10, seed=5).images
    maps = fitted.explain(images)
    assert maps.shape == images.shape
    log_odds = fitted.predict_log_odds(images).log_odds[:, 1]
    assert maps.sum((1, 2)) == pytest.approx(log_odds, rel=1e-4, abs=1e-3)
    assert fitted.explain(images, target=0, reference=1) == pytest.approx(-maps)


@pytest.mark.parametrize("options", [{"seed": 3}, {"evaluations": 16}])
def test_options_mean_the_same_to_maps_and_log_odds(fitted, options):
    images = blobs(6, seed=5).images
    log_odds = fitted.predict_log_odds(images, **options).log_odds[:, 1]
    maps = fitted.explain(images, **options)
    assert maps.sum((1, 2)) == pytest.approx(log_odds, rel=1e-4, abs=1e-3)
    assert not np.allclose(log_odds, fitted.predict_log_odds(images).log_odds[:, 1])


def test_a_prior_that_is_given_counts(fitted):
    log_odds = fitted.predict_log_odds(blobs(4).images).log_odds
    given = fitted.posterior(log_odds, prior=(0.9, 0.1))
    assert np.array_equal(given, fitted.calibration.posterior(log_odds, (0.9, 0.1)))
    assert (given[:, 1] < fitted.posterior(log_odds)[:, 1]).all()


def test_evaluations_are_counted_and_can_be_overridden(fitted):
    images = blobs(4, seed=6).images
    assert fitted.predict_log_odds(images).evaluations == 32
    many = fitted.predict_log_odds(images, evaluations=128)
    assert many.evaluations == 128
    few = fitted.predict_log_odds(images, evaluations=16, seed=1)
    assert (many.standard_error[:, 1] < few.standard_error[:, 1]).mean() > 0.5
    assert fitted.predict_log_odds(images, evaluations=2).evaluations == 2
    with pytest.raises(ValueError, match="evaluations"):
        fitted.predict_log_odds(images, evaluations=1)


def test_foreign_images_are_flagged_and_the_models_own_are_not(fitted):
    generator = np.random.default_rng(7)
    own = blobs(40, seed=7).images
    noisy = np.clip(own + generator.normal(size=own.shape) * 20000, 0, 65535).astype(np.uint16)
    digit = (load_digits().images[:40] * (65535 / 16)).astype(np.uint16)
    constant = np.full_like(own, 30000)
    for images, low, high in ((own, 0, 0.1), (noisy, 0.9, 1), (digit, 0.9, 1), (constant, 1, 1)):
        flagged = fitted.predict_log_odds(images).out_of_distribution.mean()
        assert low <= flagged <= high
    assert fitted.predict_log_odds(own, evaluations=2).out_of_distribution is None


def test_an_answer_says_when_not_to_use_it(fitted):
    images = np.concatenate([blobs(20, seed=8).images, np.zeros((1, 8, 8), np.uint16)])
    said = answer(fitted, images)
    assert said["abstain"].iloc[-1]
    assert said["out_of_distribution"].iloc[-1]
    assert said["abstain"].mean() < 0.5
    assert (said["abstain"] >= said["out_of_distribution"]).all()


def test_sequential_stopping_spends_where_there_is_doubt(fitted):
    """Against a fixed budget of 128: fewer evaluations, the same decisions but for a few."""
    test = blobs(200, seed=9)
    noise = np.random.default_rng(9).normal(size=test.images.shape) * 6000
    images = np.clip(test.images + noise, 0, 65535).astype(np.uint16)
    fixed = fitted.predict_log_odds(images, evaluations=128)
    plan = fitted.predict_log_odds(images)
    sequential = fitted.predict_log_odds(images, evaluations=128, stop_z=2.0)
    assert plan.evaluations < sequential.evaluations < 0.5 * fixed.evaluations
    settled = ~in_doubt(plan.log_odds, plan.standard_error, fitted.calibration, 2.0)
    assert np.array_equal(sequential.log_odds[settled], plan.log_odds[settled])
    assert (sequential.standard_error[~settled, 1] < plan.standard_error[~settled, 1]).mean() > 0.7
    assert np.array_equal(sequential.out_of_distribution, plan.out_of_distribution)
    decisions = [
        fitted.calibration.posterior(p.log_odds, (1, 1)).argmax(1) for p in (fixed, sequential)
    ]
    assert np.mean(decisions[0] == decisions[1]) > 0.95
    assert fitted.predict_log_odds(images[:4], stop_z=0.5).evaluations >= 32
    hard = fitted.predict_log_odds(images, evaluations=128, stop_z=1e9)
    assert hard.evaluations == 128
    with pytest.raises(ValueError, match="stop_z"):
        fitted.predict_log_odds(images, stop_z=0)


@pytest.mark.parametrize("solver", ["rk4", "heun", "dopri5"])
def test_the_flow_classifies_as_well(fitted, tmp_path, solver):
    """The same weights, with log p(x|c) from the probability flow instead of the bound."""
    fitted.save(tmp_path / "elbo")
    model = ScoreBasedClassifier.load(tmp_path / "elbo")
    model.settings = replace(model.settings, likelihood="ode", ode_solver=solver, ode_steps=16)
    model.save(tmp_path / "ode")
    model = ScoreBasedClassifier.load(tmp_path / "ode")
    test = blobs(4 if solver == "dopri5" else 16, seed=2)
    found = model.predict_log_odds(test.images)
    assert mean_pairwise_auc(found.log_odds, test.labels) > 0.9
    assert (found.standard_error[:, 1] > 0).all()
    by_draws = fitted.predict_log_odds(test.images)
    assert np.array_equal(found.out_of_distribution, by_draws.out_of_distribution)
    evaluations = {"rk4": 4 * 16, "heun": 2 * 16, "dopri5": 7}[solver]
    least = 2 * 2 * evaluations  # classes, probes
    assert found.evaluations >= least + by_draws.evaluations
    if solver != "dopri5":
        assert found.evaluations == least + by_draws.evaluations
    alone = model.predict_log_odds(test.images[2:3])
    assert alone.log_odds[0] == pytest.approx(found.log_odds[2], rel=1e-3, abs=1e-2)
    for wrong in ({"evaluations": 8}, {"stop_z": 2.0}):
        with pytest.raises(ValueError, match=r"^evaluations and stop_z are those of likelihood"):
            model.predict_log_odds(test.images, **wrong)
    assert model.predict_log_odds(test.images[:0]).log_odds.shape == (0, 2)


def test_the_draws_beside_a_flow_are_those_of_the_seed(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path)
    model = ScoreBasedClassifier.load(tmp_path)
    model.settings = replace(model.settings, likelihood="ode", ode_steps=2)
    asked, make = [], EvaluationPlan.make_draws

    def noted(plan, side, **options):
        asked.append(options)
        return make(plan, side, **options)

    monkeypatch.setattr(EvaluationPlan, "make_draws", noted)
    model.predict_log_odds(blobs(1).images, seed=5)
    assert asked == [{"draws": 16, "seed": 5}]


def test_dequantisation_fills_the_cell_of_a_grey_value():
    """The noise is that of the seed and stays within half a grey value to either side."""
    images = blobs(3).images
    noise = (dequantised(images, seed=1).double() - to_model_range(images).double()) * 65535 / 2
    assert noise.abs().max() < 0.51  # a float32 near 1 is rounded
    assert noise.std() == pytest.approx(12**-0.5, rel=0.3)
    assert torch.equal(dequantised(images[:1], seed=1), dequantised(images, seed=1)[:1])


def test_no_images_are_no_trouble(fitted):
    none = np.zeros((0, 8, 8), np.uint16)
    assert fitted.predict_log_odds(none).log_odds.shape == (0, 2)
    assert fitted.predict_log_odds(none, stop_z=2.0).log_odds.shape == (0, 2)
    assert fitted.explain(none).shape == (0, 8, 8)


def test_samples_are_images(fitted):
    images = fitted.sample(1, 3, sampler="ancestral")
    assert (images.shape, images.dtype) == ((3, 8, 8), np.uint16)
    assert np.array_equal(images, fitted.sample(1, 3, sampler="ancestral"))


def test_a_sample_is_asked_for_and_scaled_back(fitted, monkeypatch):
    asked, x = [], torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)

    def sample(network, labels, image_size, **options):
        asked.append((labels.tolist(), image_size, options))
        return x

    monkeypatch.setattr("sgc_experiments.classifier.sample", sample)
    images = fitted.sample(1, 2, sampler="ancestral", guidance=1.5, seed=7)
    fitted.sample(0, 1)
    ends = {"log_snr_min": -2.0, "log_snr_max": 6.0}
    assert asked == [
        ([1, 1], 8, ends | {"sampler": "ancestral", "guidance": 1.5, "seed": 7}),
        ([0], 8, ends | {"sampler": "probability_flow", "guidance": 1.0, "seed": 0}),
    ]
    again = fitted.network.standardise(to_model_range(images))
    torch.testing.assert_close(again, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("train", "validation", "told"),
    [
        (
            np.arange(8) % 3,
            8,
            r"^Training labels reach 2; classes are \('benign', 'malignant'\)\.$",
        ),
        (
            np.zeros(8, int),
            8,
            r"^No training image is malignant: a class needs at least one\. "
            r"Use more patients, or another split\.$",
        ),
        (np.arange(8) % 2, 10, "uint16"),
    ],
)
def test_fit_refuses_in_one_sentence(train, validation, told):
    with pytest.raises(UserError, match=told):
        ScoreBasedClassifier(**TINY).fit(
            ImageSet(blobs(8).images, train), blobs(4, size=validation), settings=QUICK
        )


@pytest.mark.parametrize("images", [np.zeros((2, 9, 9), np.uint16), np.zeros((2, 8, 8), np.uint8)])
def test_images_of_another_kind_are_refused(fitted, images):
    with pytest.raises(UserError, match="uint16"):
        fitted.predict_log_odds(images)


def test_constant_and_extreme_images_have_finite_answers(fitted):
    images = np.stack([np.zeros((8, 8)), np.full((8, 8), 65535), np.eye(8) * 65535])
    prediction = fitted.predict_log_odds(images.astype(np.uint16))
    assert np.isfinite(prediction.log_odds).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"classes": ["only"]}, "classes"),
        ({"image_size": 9}, "image_size must be a multiple of 2"),
        ({"image_size": 0}, "image_size must be a multiple of 2"),
        ({"evaluations": 3}, "evaluations"),
        ({"sde": "x"}, "sde"),
        ({"likelihood": "x"}, "likelihood"),
        ({"ode_steps": 0}, "steps"),
        ({"sde_parameters": {"beta_max": -1}}, "beta_max"),
        ({"log_snr_min": 9.0}, "log_snr_min"),
    ],
)
def test_a_wrong_parameter_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        ScoreBasedClassifier(**TINY | arguments)


def test_the_band_is_where_the_evidence_is():
    """Class differences at λ between 2 and 5 only; elsewhere noise ten times as large."""
    generator = np.random.default_rng(0)
    log_snr = torch.linspace(-4, 8, 64, dtype=torch.float64)
    labels = np.arange(60) % 2
    errors = torch.as_tensor(generator.normal(size=(60, 64, 2)))
    inside = (log_snr > 2) & (log_snr < 5)
    errors[:, ~inside] *= 10
    for c in range(2):
        errors[labels == c, :, c] -= inside.double()
    low, high = choose_band(errors, log_snr, labels, -4.0, 8.0, draws=8)
    assert 1 <= low <= 3.5
    assert 3.5 <= high <= 6
    assert choose_band(errors, log_snr, np.zeros(60, int), -4.0, 8.0, draws=8) == (-4.0, 8.0)
    assert choose_band(errors, log_snr, labels, 3.0, 4.5, draws=8) == (3.0, 4.5)


@pytest.mark.parametrize(("draws", "found"), [(16, 112), (4, 64), (64, 128)])
def test_the_narrowest_band_holds_as_many_draws_as_a_prediction_if_that_is_bearable(draws, found):
    assert planning_draws(draws, 14.0) == found


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_standard_error_of_a_mean_auc_is_its_spread(classes):
    generator = np.random.default_rng(0)
    labels = np.arange(30 * classes) % classes
    aucs, errors = [], []
    for _ in range(200):
        scores = generator.normal(size=(len(labels), classes))
        scores[np.arange(len(labels)), labels] += 1
        shares = _placements(scores, labels)
        aucs.append(mean_pairwise_auc(scores, labels))
        errors.append(_standard_error(shares, labels))
    pairs = [
        roc_auc_score(labels[rows] == b, scores[rows, b] - scores[rows, a])
        for a, b in combinations(range(classes), 2)
        for rows in [np.isin(labels, (a, b))]
    ]
    assert aucs[-1] == pytest.approx(np.mean(pairs))
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.12)


def digits():
    """Real handwritten digits, 8 × 8, ten classes; a fixed third is for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * (65535 / 16)).astype(np.uint16)
    order = np.random.default_rng(0).permutation(len(labels))
    train, validation, test = np.split(order, [1000, 1200])
    return [
        ImageSet(images[part], labels[part].astype(np.int64)) for part in (train, validation, test)
    ]


@pytest.mark.slow
def test_ten_classes_of_real_digits():
    train, validation, test = digits()
    model = ScoreBasedClassifier(
        [str(d) for d in range(10)], 8, channels=[32, 64], blocks=1, patch=1,
        log_snr_min=-4.0, log_snr_max=5.0, evaluations=160, class_conditioning="decoder",
    )  # fmt: skip
    settings = TrainingSettings(
        budget="steps:400", batch_size=64, progress=False, validate_every=200,
        augmentation=AugmentationSettings(
            horizontal_flip=False, vertical_flip=False, rotation=8, shift=0.08
        ),
    )  # fmt: skip
    model.fit(train, validation, settings=settings)
    posterior = model.posterior(model.predict_log_odds(test.images).log_odds)
    assert np.mean(posterior.argmax(1) == test.labels) >= 0.97
