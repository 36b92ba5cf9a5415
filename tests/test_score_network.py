"""The network: independent rows, per-pixel output, one meaning for three predictions."""

import pytest
import torch

from sgc_experiments.score_network import (
    CLASS_CONDITIONING,
    PREDICTIONS,
    ScoreNetwork,
    alpha_sigma,
    predicted_noise,
)


def randomised(**arguments):
    """A network whose zero-initialised layers say something."""
    torch.manual_seed(0)
    network = ScoreNetwork(3, **{"channels": (8, 16), "blocks": 1} | arguments)
    for parameter in network.parameters():
        if parameter.dim() > 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(5, 1, 16, 16, generator=generator)
    return z, torch.linspace(-4, 8, 5), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("class_conditioning", CLASS_CONDITIONING)
def test_an_image_alone_gets_the_answer_it_gets_in_a_batch(batch, class_conditioning):
    network = randomised(class_conditioning=class_conditioning)
    with torch.no_grad():
        together = network(*batch)
        alone = torch.cat([network(*(part[i : i + 1] for part in batch)) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_no_part_normalises_over_the_batch(batch, training):
    """The gradient of one image's output reaches no other image, in training mode either."""
    network = randomised().train(training)
    z = batch[0].clone().requires_grad_()
    network(z, *batch[1:])[2].square().sum().backward()
    touched = z.grad.abs().flatten(1).sum(1) > 0
    assert touched.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("class_conditioning", CLASS_CONDITIONING)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_all_classes_is_every_class_in_turn(batch, class_conditioning, prediction):
    network = randomised(class_conditioning=class_conditioning, prediction=prediction)
    z, log_snr, _ = batch
    with torch.no_grad():
        every = network.all_classes(z, log_snr)
        for c in range(3):
            one = network(z, log_snr, torch.full((5,), c))
            torch.testing.assert_close(every[:, c], one, rtol=1e-4, atol=1e-4)
    assert (every[:, 0] - every[:, 1]).abs().mean() > 1e-3


def test_the_null_class_is_a_class_of_its_own(batch):
    network = randomised()
    z, log_snr, _ = batch
    null = network(z, log_snr, torch.full((5,), 3))
    assert (null - network(z, log_snr, torch.zeros(5, dtype=torch.long))).abs().mean() > 1e-3


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_true_output_gives_the_true_noise(prediction):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 1, 4, 4, generator=generator, dtype=torch.float64)
    eps = torch.randn(7, 1, 4, 4, generator=generator, dtype=torch.float64)
    log_snr = torch.linspace(-8, 12, 7, dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr, x)
    z = alpha * x + sigma * eps
    truth = {"eps": eps, "x0": x, "v": alpha * eps - sigma * x}[prediction]
    torch.testing.assert_close(predicted_noise(prediction, truth, z, log_snr), eps)


def test_the_output_can_differ_at_every_pixel():
    """A few steps of training go towards noise, which has hardly any smooth part.

    Anything made of 2 × 2 blocks of one value would leave three quarters of it.
    """
    torch.manual_seed(0)
    network = ScoreNetwork(1, channels=(16, 16), blocks=1, patch=2, prediction="eps")
    z = torch.randn(2, 1, 8, 8)
    target = torch.randn(2, 1, 8, 8)
    log_snr, classes = torch.zeros(2), torch.zeros(2, dtype=torch.long)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        loss = (network(z, log_snr, classes) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.4


def test_standardisation_by_image_ignores_gain_and_offset():
    network = randomised(standardisation="image")
    images = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(network.standardise(images), network.standardise(images * 0.3 - 0.5))
    assert network.standardise(torch.full((1, 1, 16, 16), 0.25)).abs().max() == 0


def test_the_papers_network_is_within_reach():
    network = ScoreNetwork(2, channels=(32, 64, 128, 256, 512), blocks=1, patch=1)
    assert 384 % network.stride == 0
    with torch.no_grad():
        shape = network(torch.zeros(1, 1, 64, 64), torch.zeros(1), torch.zeros(1, dtype=int)).shape
    assert shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"classes": 0}, "classes"),
        ({"channels": ()}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"patch": 0}, "patch"),
        ({"prediction": "noise"}, "prediction"),
        ({"class_conditioning": "none"}, "class_conditioning"),
        ({"dropout": 1.0}, "dropout"),
        ({"standardisation": "none"}, "standardisation"),
    ],
)
def test_a_wrong_parameter_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        ScoreNetwork(**{"classes": 2} | arguments)


@pytest.mark.parametrize("conditioning", CLASS_CONDITIONING)
def test_gradient_checkpointing_changes_no_number(conditioning):
    network = ScoreNetwork(2, channels=(8, 16), blocks=1, class_conditioning=conditioning)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    z, log_snr, labels = (
        torch.randn(3, 1, 16, 16),
        torch.linspace(-2, 6, 3),
        torch.tensor([0, 1, 1]),
    )

    def gradients():
        network.zero_grad()
        network(z, log_snr, labels).square().mean().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain = gradients()
    assert any(g.abs().max() > 1e-4 for g in plain)
    network.set_grad_checkpointing()
    for expected, found in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_gradient_checkpointing_keeps_fewer_activations():
    network = ScoreNetwork(2, channels=(8, 16), blocks=2)
    z, log_snr, labels = torch.randn(2, 1, 32, 32), torch.zeros(2), torch.tensor([0, 1])

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            network(z, log_snr, labels)
        return sum(sizes)

    plain = kept()
    network.set_grad_checkpointing()
    assert kept() < 0.5 * plain


def test_low_precision_and_memory_format_agree_with_full_precision():
    network = randomised()
    z, log_snr = torch.randn(4, 1, 32, 32), torch.linspace(-2, 6, 4)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        full = network(z, log_snr, labels)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(z, log_snr, labels)
        contiguous = network.to(memory_format=torch.contiguous_format)(z, log_snr, labels)
    assert low.dtype == torch.float32
    assert (low - full).norm() < 0.03 * full.norm()
    assert (low - full).norm() > 0
    torch.testing.assert_close(contiguous, full, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("class_conditioning", CLASS_CONDITIONING)
def test_a_compiled_network_agrees(class_conditioning):
    network = randomised(class_conditioning=class_conditioning)
    z, log_snr = torch.randn(4, 1, 32, 32), torch.linspace(-2, 6, 4)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        one, all_classes = network(z, log_snr, labels), network.all_classes(z, log_snr)
        torch._dynamo.reset()  # of what other tests have compiled
        network.compile()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.testing.assert_close(
            network.all_classes(z, log_snr), all_classes, rtol=1e-4, atol=1e-5
        )
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
        torch.testing.assert_close(network(z, log_snr, labels), one, rtol=1e-4, atol=1e-5)
