"""The objective: weights that integrate to one, sampling that never changes the loss."""

import math

import numpy as np
import pytest
import torch

from sgc_experiments.noise_levels import SAMPLINGS
from sgc_experiments.objective import WEIGHTINGS, DenoisingScoreMatching, _with_another
from sgc_experiments.score_network import ScoreNetwork
from sgc_experiments.sde import make_sde
from sgc_experiments.training_settings import Moment

LOW, HIGH = -4.0, 8.0


def make_objective(sde="vp", **arguments):
    return DenoisingScoreMatching(make_sde(sde), log_snr_min=LOW, log_snr_max=HIGH, **arguments)


def make_network(classes=2):
    torch.manual_seed(0)
    network = ScoreNetwork(classes, channels=(8,), blocks=1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


START, GROWN = Moment(0, 0.0), Moment(300, 0.0)
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(8) % 2


@pytest.mark.parametrize("sde", ["vp", "cosine", "sub_vp", "ve"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_positive_and_integrate_to_one(weighting, sde):
    grid = torch.linspace(LOW, HIGH, 5001, dtype=torch.float64)
    weight = make_objective(sde, weighting=weighting).weight(grid)
    assert (weight > 0).all()
    assert float(torch.trapezoid(weight, grid)) == pytest.approx(1, abs=1e-4)


def test_simple_is_the_sdes_time_drawn_uniformly():
    objective = make_objective("vp", weighting="simple")
    levels = torch.tensor([-3.0, 0.0, 5.0]).double()
    step = 1e-4
    density = (objective.sde.time(levels - step) - objective.sde.time(levels + step)) / (2 * step)
    ratio = objective.weight(levels) / density
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-4, atol=0)


def test_min_snr_caps_the_clean_end():
    simple, capped = (make_objective(weighting=w) for w in ("simple", "min_snr"))
    levels = torch.tensor([math.log(5.0) - 1, math.log(5.0) + 2]).double()
    below, above = (capped.weight(levels) / simple.weight(levels)).tolist()
    assert above / below == pytest.approx(math.exp(-2), rel=1e-6)


@pytest.mark.parametrize("weighting", ["elbo", "sigmoid"])
def test_sampling_never_changes_the_expected_loss(weighting):
    network = make_network()
    means = {}
    for sampling in SAMPLINGS:
        objective = make_objective(weighting=weighting, log_snr_sampling=sampling)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            # In a new order every time, lest an image always meet the same stratum of noise levels.
            orders = [torch.randperm(len(IMAGES), generator=generator) for _ in range(150)]
            losses = [
                float(objective.loss(network, IMAGES[order], LABELS[order], generator, START)[0])
                for order in orders
            ]
        means[sampling] = (np.mean(losses), np.std(losses) / math.sqrt(len(losses)))
        if sampling == "importance":
            assert objective.sampling_density().masses.std() > 3e-3
    reference, reference_error = means["stratified"]
    for mean, error in means.values():
        assert abs(mean - reference) < 4 * math.hypot(error, reference_error)
    assert means["stratified"][1] < means["uniform"][1]


def test_unlabelled_images_train_the_null_class_alone():
    network = make_network()
    labels = torch.full((8,), -1)
    loss, _ = make_objective().loss(
        network, IMAGES, labels, torch.Generator().manual_seed(0), START
    )
    loss.backward()
    rows = network.class_embedding.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [False, False, True]


def test_label_dropout_trains_the_null_class_too():
    network = make_network()
    objective = make_objective(label_dropout=0.5)
    loss, _ = objective.loss(network, IMAGES, LABELS, torch.Generator().manual_seed(0), START)
    loss.backward()
    assert (network.class_embedding.weight.grad.abs().sum(1) > 0).all()


def test_the_hybrid_adds_the_cross_entropy_of_shared_noise():
    """The denoising part is that of the plain objective; the rest is a cross-entropy, ln 2 for a
    network that does not know the classes."""
    network = make_network()
    plain, hybrid = make_objective(), make_objective(hybrid_weight=0.1)
    first, _ = plain.loss(network, IMAGES, LABELS, torch.Generator().manual_seed(0), GROWN)
    second, metrics = hybrid.loss(network, IMAGES, LABELS, torch.Generator().manual_seed(0), GROWN)
    assert metrics["denoising_loss"] == pytest.approx(float(first.detach()), rel=1e-4)
    assert float(second.detach()) == pytest.approx(
        float(first.detach()) + 0.1 * metrics["class_loss"], rel=1e-4
    )
    torch.nn.init.zeros_(network.class_embedding.weight)
    _, metrics = hybrid.loss(network, IMAGES, LABELS, torch.Generator().manual_seed(0), START)
    assert metrics["class_loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_label_smoothing_spreads_a_share_of_each_label():
    """The smoothed cross-entropy lies between those of the labels and of their opposites."""
    network = make_network()

    def class_loss(smoothing, labels):
        hybrid = make_objective(hybrid_weight=0.1, label_smoothing=smoothing)
        generator = torch.Generator().manual_seed(0)
        return hybrid.loss(network, IMAGES, labels, generator, START)[1]["class_loss"]

    right, wrong = class_loss(0.0, LABELS), class_loss(0.0, 1 - LABELS)
    assert abs(right - wrong) > 1e-3
    assert class_loss(0.4, LABELS) == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-5)


def test_the_cross_entropy_comes_and_goes():
    network, shares = make_network(), []
    for moment in ((0, 0.0), (149, 0.0), (299, 0.0), (5000, 0.5), (0, 0.5), (5000, 1.0)):
        hybrid = make_objective(hybrid_weight=10.0)
        total, metrics = hybrid.loss(
            network, IMAGES, LABELS, torch.Generator().manual_seed(0), Moment(*moment)
        )
        part = float(total.detach()) - metrics["denoising_loss"]
        shares.append(part / (10 * metrics["class_loss"]))
    assert shares == pytest.approx([1 / 300, 0.5, 1, 0.5, 1 / 600, 0], rel=1e-3, abs=1e-6)


def test_the_hybrid_costs_two_passes_however_many_classes():
    network = ScoreNetwork(5, channels=(8,), patch=1)
    rows = []
    network.head.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    _, metrics = make_objective(hybrid_weight=0.1).loss(
        network, IMAGES, labels, torch.Generator().manual_seed(0), START
    )
    assert rows == [16]
    assert metrics["class_loss"] == pytest.approx(math.log(2), rel=1e-5)


def test_every_other_class_is_contested():
    labels = torch.tensor([0, 1, 2]).repeat(100)
    own, other = _with_another(labels, 3, torch.Generator().manual_seed(0)).T
    assert (own == labels).all()
    pairs = {tuple(pair) for pair in zip(own.tolist(), other.tolist(), strict=True)}
    assert pairs == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}


def test_the_hybrid_takes_unlabelled_images():
    network = make_network()
    labels = torch.tensor([0, -1, 1, -1, 0, -1, 1, -1])
    hybrid = make_objective(hybrid_weight=0.1)
    loss, metrics = hybrid.loss(network, IMAGES, labels, torch.Generator().manual_seed(0), START)
    assert math.isfinite(float(loss.detach()))
    only = torch.full((8,), -1)
    _, metrics = hybrid.loss(network, IMAGES, only, torch.Generator().manual_seed(0), START)
    assert "class_loss" not in metrics


def test_validation_does_not_hold_all_images_at_once(monkeypatch):
    network = make_network().eval()
    images = np.random.default_rng(0).integers(0, 65536, (7, 8, 8), dtype=np.uint16)
    labels = np.arange(7) % 2
    whole = make_objective(hybrid_weight=0.01).validate(network, images, labels)
    monkeypatch.setattr("sgc_experiments.batches._CHUNK", 3)
    parts = make_objective(hybrid_weight=0.01).validate(network, images, labels)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_validation_is_the_same_at_every_call_and_for_any_order():
    network = make_network().eval()
    images = np.random.default_rng(0).integers(0, 65536, (6, 8, 8), dtype=np.uint16)
    labels = np.array([0, 1, 0, 1, 1, 0])
    first = make_objective().validate(network, images, labels)
    assert first == make_objective().validate(network, images, labels)
    turned = make_objective().validate(network, images[::-1].copy(), labels[::-1].copy())
    assert first == pytest.approx(turned, rel=1e-5)
    swapped = make_objective().validate(network, images, 1 - labels)
    assert first["validation_auc"] == pytest.approx(1 - swapped["validation_auc"])


def test_validation_judges_alike_however_long_training_has_gone_on():
    network = make_network(classes=3).eval()
    images = np.random.default_rng(0).integers(0, 65536, (6, 8, 8), dtype=np.uint16)
    labels = np.arange(6) % 3
    hybrid = make_objective(hybrid_weight=0.1)
    first = hybrid.validate(network, images, labels)
    assert first["validation_loss"] == pytest.approx(
        make_objective().validate(network, images, labels)["validation_loss"]
        + 0.1 * first["validation_class_loss"]
    )
    hybrid.squared_evidence += 1e6
    hybrid.evidence_seen += 1
    assert hybrid.validate(network, images, labels) == first
    torch.nn.init.zeros_(network.class_embedding.weight)
    ignorant = hybrid.validate(network, images, labels)
    assert ignorant["validation_class_loss"] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weighting": "none"}, "weighting"),
        ({"log_snr_sampling": "none"}, "log_snr_sampling"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma"),
        ({"hybrid_weight": -1.0}, "hybrid_weight"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_a_wrong_parameter_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make_objective(**arguments)


def test_an_empty_range_is_named():
    with pytest.raises(ValueError, match="log_snr_min"):
        DenoisingScoreMatching(make_sde("vp"), log_snr_min=3.0, log_snr_max=3.0)
