"""Any timm network takes grey images of any size that it can take, and says so where it cannot."""

import numpy as np
import pytest
import torch

from baselines.classification_loss import logits_of
from baselines.networks import build_network
from sgc_experiments.errors import UserError


def _images(n, size, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (n, size, size), dtype=np.uint16)


def test_averaging_over_all_symmetries_makes_them_indistinguishable():
    network = build_network("test_resnet", image_size=32, n_classes=2, seed=0).eval()
    images = _images(3, 32)
    flipped = np.ascontiguousarray(images[:, ::-1])
    torch.testing.assert_close(
        logits_of(network, images, range(8)), logits_of(network, flipped, range(8))
    )
    assert not torch.allclose(logits_of(network, images), logits_of(network, flipped))


def test_the_seed_decides_the_weights_and_the_callers_generator_stays_as_it_was():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        build_network("test_resnet", image_size=32, n_classes=2, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(("size", "patches"), [(16, 64), (48, 64), (128, 64), (160, 100)])
def test_a_transformer_cuts_a_small_image_into_64_patches(size, patches):
    network = build_network("test_vit", image_size=size, n_classes=2, seed=0)
    assert network.backbone.patch_embed.num_patches == patches


def test_the_input_is_standardised():
    network = build_network("test_resnet", image_size=32, n_classes=2, seed=0)
    images = torch.randn(50, 1, 32, 32) * 0.2 - 0.4
    network.standardise_to(images)
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    assert float(seen[0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(seen[0].std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("resnet81", 32, ["'resnet81'", "did you mean", "resnet18"]),
        ("timm/resnet18", 32, ["'timm/resnet18'"]),
        ("%$", 32, ["'%$'", "sgc or a timm model"]),
        ("resnet18.imagenet", 32, ["resnet18 has no pretrained weights", "a1_in1k"]),
        ("inception_v3", 32, ["inception_v3 cannot take images of 32 pixels"]),
        ("coatnet_0_rw_224", 48, ["coatnet_0_rw_224 cannot take images of 48 pixels"]),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_in_one_sentence(name, size, words):
    with pytest.raises(UserError) as caught:
        build_network(name, image_size=size, n_classes=2, seed=0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_gradient_checkpointing_changes_no_gradient():
    network = build_network("resnet18", image_size=32, n_classes=2, seed=0).train()
    images = torch.randn(4, 1, 32, 32)

    def gradients():
        network.zero_grad()
        network(images).square().sum().backward()
        return [p.grad.clone() for p in network.parameters()]

    plain = gradients()
    network.set_grad_checkpointing()
    for expected, found in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
