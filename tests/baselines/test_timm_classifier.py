"""timm networks learn, repeat themselves, and keep the classifier protocol."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from baselines.classification_loss import ClassificationLoss, logits_of
from baselines.timm_classifier import TimmClassifier
from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.batches import ImageSet
from sgc_experiments.errors import UserError
from sgc_experiments.training_settings import Moment, TrainingSettings
from tests.baselines.pictures import SIZE, discs

ARCHITECTURES = (
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)
PLAIN = AugmentationSettings(horizontal_flip=False, vertical_flip=False)


def _settings(**changes):
    defaults = {
        "budget": "steps:24",
        "batch_size": 16,
        "learning_rate": 3e-3,
        "validate_every": 8,
        "device": "cpu",
        "progress": False,
    }
    return TrainingSettings(**defaults | changes)


BRIEF = _settings(budget="steps:8", validate_every=4)


def _small(**arguments):
    return TimmClassifier(image_size=SIZE, model="test_resnet", **arguments)


@pytest.fixture(scope="module")
def fitted():
    classifier = _small()
    result = classifier.fit(discs(80, seed=0), discs(40, seed=1), settings=_settings())
    return classifier, result


@pytest.fixture(scope="module")
def briefly_fitted():
    classifier = _small()
    classifier.fit(discs(80, seed=0), discs(40, seed=1), settings=BRIEF)
    return classifier


def test_it_learns_what_can_be_seen_and_its_probabilities_hold(fitted):
    classifier, result = fitted
    test = discs(100, seed=2)
    posterior = classifier.posterior(classifier.predict_log_odds(test.images).log_odds)
    assert roc_auc_score(test.labels, posterior[:, 1]) > 0.95
    assert posterior[:, 1].mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(posterior.sum(1), 1)
    assert (result.steps, result.images, result.stopped) == (24, 384, "budget")
    assert {"step", "validation_loss", "validation_accuracy"} <= set(result.history[0])


def test_a_prediction_is_paired_and_costs_one_evaluation_per_symmetry(fitted):
    classifier, _ = fitted
    prediction = classifier.predict_log_odds(discs(3, seed=2).images)
    assert np.all(prediction.log_odds[:, 0] == 0)
    assert np.all(prediction.standard_error == 0)
    assert prediction.evaluations == len(_settings().augmentation.symmetries()) == 4
    assert classifier.predict_log_odds(np.zeros((0, SIZE, SIZE), np.uint16)).log_odds.shape == (
        0,
        2,
    )


def test_what_is_saved_answers_the_same(fitted, tmp_path):
    classifier, _ = fitted
    classifier.save(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    loaded = TimmClassifier.load(tmp_path / "model")
    images = discs(5, seed=3).images
    before, after = (c.predict_log_odds(images).log_odds for c in (classifier, loaded))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(classifier.posterior(before), loaded.posterior(after))


def test_a_damaged_model_is_refused(fitted, tmp_path):
    fitted[0].save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match="no sound model"):
        TimmClassifier.load(tmp_path / "model")


def test_the_same_seed_gives_the_same_digits(briefly_fitted):
    images = discs(10, seed=3).images
    expected = briefly_fitted.predict_log_odds(images).log_odds
    for seed, same in ((0, True), (1, False)):
        again = _small()
        settings = dataclasses.replace(BRIEF, seed=seed)
        again.fit(discs(80, seed=0), discs(40, seed=1), settings=settings)
        assert np.array_equal(again.predict_log_odds(images).log_odds, expected) == same


def test_a_broken_off_training_ends_as_an_unbroken_one(briefly_fitted, tmp_path):
    sets = discs(80, seed=0), discs(40, seed=1)
    steps = iter(range(3))
    _small().fit(
        *sets,
        settings=BRIEF,
        checkpoint_dir=tmp_path,
        should_stop=lambda: next(steps, None) is None,
    )
    resumed = _small()
    result = resumed.fit(*sets, settings=BRIEF, checkpoint_dir=tmp_path)
    assert result.steps == 8
    images = discs(10, seed=3).images
    np.testing.assert_array_equal(
        resumed.predict_log_odds(images).log_odds, briefly_fitted.predict_log_odds(images).log_odds
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_network_trains_and_looks_at_each_image_alone(name):
    classifier = TimmClassifier(image_size=SIZE, model=name, drop_rate=0.1, mixup=0.2)
    before = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    losses = []
    classifier.fit(
        discs(16, seed=0),
        discs(4, seed=1),
        settings=_settings(budget="steps:2", batch_size=8, log_every=1, augmentation=PLAIN),
        on_step=lambda metrics, _: losses.append(metrics["loss"]),
    )
    after = classifier.network.state_dict()
    assert np.isfinite(losses).all()
    assert sum(not torch.equal(before[k], after[k]) for k in after) > 0.9 * len(list(after))
    images = discs(3, seed=2).images
    together = classifier.predict_log_odds(images).log_odds
    alone = [classifier.predict_log_odds(images[i : i + 1]).log_odds[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("balanced", "class_weights"), [(True, False), (False, True)])
def test_a_correction_for_skewed_classes_is_taken_out_of_the_log_odds(balanced, class_weights):
    """Images that tell nothing get the prevalence, however the classes were weighed."""
    skewed = {"malignant": 0.1, "contrast": 0.0}
    classifier = _small(class_weights=class_weights, label_smoothing=0.0)
    classifier.fit(
        discs(100, seed=0, **skewed),
        discs(100, seed=1, **skewed),
        settings=_settings(balanced=balanced, budget="steps:10", augmentation=PLAIN),
    )
    log_odds = classifier.predict_log_odds(discs(50, seed=2, **skewed).images).log_odds
    np.testing.assert_array_equal(classifier.prior_seen, [0.5, 0.5])
    assert classifier.posterior(log_odds)[:, 1].mean() == pytest.approx(0.1, abs=0.05)


def test_unlabelled_images_are_left_out(briefly_fitted):
    labelled = discs(80, seed=0)
    hidden = discs(30, seed=7)
    mixed = ImageSet(
        np.concatenate([hidden.images, labelled.images]),
        np.concatenate([np.full(30, -1), labelled.labels]),
    )
    classifier = _small()
    classifier.fit(mixed, discs(40, seed=1), settings=BRIEF)
    images = discs(10, seed=3).images
    np.testing.assert_array_equal(
        classifier.predict_log_odds(images).log_odds,
        briefly_fitted.predict_log_odds(images).log_odds,
    )


def test_a_small_batch_is_warned_of_only_where_batches_are_normalised(caplog):
    sets = discs(8, seed=0), discs(4, seed=1)
    tiny = _settings(budget="steps:1", batch_size=4)
    with caplog.at_level(logging.WARNING):
        TimmClassifier(image_size=SIZE, model="test_convnext").fit(*sets, settings=tiny)
        assert not caplog.records
        _small().fit(*sets, settings=tiny)
    assert "batch_size=4 is small" in caplog.text
    with pytest.raises(UserError, match="batch_size must be at least 2"):
        _small().fit(*sets, settings=_settings(budget="steps:1", batch_size=1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixup": -1.0}, "mixup"),
        ({"drop_rate": 1.5}, "drop_rate"),
        ({"classes": ("benign",)}, "classes"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        _small(**arguments)


def test_images_that_do_not_fit_are_refused():
    classifier = _small()
    one_class = discs(20, seed=0, malignant=0.0)
    with pytest.raises(UserError, match="No training image is malignant"):
        classifier.fit(one_class, discs(4, seed=1), settings=_settings())
    with pytest.raises(UserError, match=r"\(N, 32, 32\), not uint16 of shape \(2, 16, 16\)"):
        classifier.predict_log_odds(np.zeros((2, 16, 16), np.uint16))


def test_the_validation_loss_of_a_balanced_training_weighs_the_classes_alike():
    labels = np.array([0] * 9 + [1])
    images = np.zeros((10, SIZE, SIZE), np.uint16)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([1.0, 0.0]))
    losses = -np.log(np.array([np.e, 1]) / (np.e + 1))
    for balanced, weights in ((True, (0.5, 0.5)), (False, (0.9, 0.1))):
        loss = ClassificationLoss(balanced=balanced).validate(network, images, labels)
        assert loss["validation_loss"] == pytest.approx(weights @ losses)


def test_the_validation_auc_is_that_of_the_logits():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65536, (40, 2, 2), dtype=np.uint16)
    labels = np.arange(40) % 2
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    logits = logits_of(network, images).numpy()
    metrics = ClassificationLoss().validate(network, images, labels)
    expected = roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    assert metrics["validation_auc"] == pytest.approx(expected)
    of_one_class = ClassificationLoss().validate(network, images, np.zeros(40, dtype=int))
    assert np.isnan(of_one_class["validation_auc"])


def test_mixup_mixes_images_and_labels_alike():
    seen = []

    def network(images):
        seen.append(images)
        return torch.zeros(len(images), 2, requires_grad=True)

    images = torch.arange(8.0).reshape(8, 1, 1, 1)
    labels = (torch.arange(8) >= 4).long()
    generator = torch.Generator().manual_seed(0)
    ClassificationLoss(mixup=1.0).loss(network, images, labels, generator, Moment(0, 0.0))
    mixed = seen[0]
    assert not torch.equal(mixed, images)
    assert float(mixed.mean()) == pytest.approx(3.5, abs=1e-5)
