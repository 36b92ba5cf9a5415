"""Augmentation: symmetries that undo, ranges that hold, noise from the generator alone."""

import numpy as np
import pytest
import torch

from sgc_experiments.augmentation import (
    SYMMETRIES,
    AugmentationSettings,
    apply_symmetry,
    augment,
    undo_symmetry,
)

IMAGES = torch.rand(64, 1, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
EVERYTHING = AugmentationSettings(
    transpose=True, rotation=20, scale=0.1, shift=0.1, contrast=0.3, brightness=0.2
)


def run(settings, images=IMAGES, seed=0):
    return augment(images, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("code", range(SYMMETRIES))
def test_undo_symmetry_undoes(code):
    torch.testing.assert_close(undo_symmetry(apply_symmetry(IMAGES, code), code), IMAGES)


def test_the_symmetries_are_all_eight_of_the_square():
    images = {apply_symmetry(IMAGES[0], code).numpy().tobytes() for code in range(SYMMETRIES)}
    by_numpy = {
        np.ascontiguousarray(np.rot90(side, k)).tobytes()
        for side in (IMAGES[0, 0].numpy(), IMAGES[0, 0].numpy().T)
        for k in range(4)
    }
    assert images == by_numpy


def test_flips_move_pixels_without_changing_them():
    flipped = run(AugmentationSettings(transpose=True))
    assert torch.equal(flipped.flatten(1).sort().values, IMAGES.flatten(1).sort().values)
    kinds = {
        code
        for before, after in zip(IMAGES, flipped, strict=True)
        for code in range(SYMMETRIES)
        if torch.equal(apply_symmetry(before, code), after)
    }
    assert kinds == set(AugmentationSettings(transpose=True).symmetries()) == set(range(8))


def test_none_changes_nothing():
    assert torch.equal(run(AugmentationSettings.none()), IMAGES)
    assert AugmentationSettings.none().symmetries() == (0,)


def test_everything_keeps_range_and_repeats_by_seed():
    images = run(EVERYTHING)
    assert images.shape == IMAGES.shape
    assert images.abs().max() <= 1
    assert torch.equal(images, run(EVERYTHING))
    assert not torch.equal(images, run(EVERYTHING, seed=1))


def test_zero_rotation_scale_and_shift_resample_to_the_same_image():
    """The largest allowed change may be tiny: interpolation itself must not blur or move."""
    tiny = AugmentationSettings(
        horizontal_flip=False, vertical_flip=False, rotation=1e-6, shift=1e-9
    )
    torch.testing.assert_close(run(tiny), IMAGES, rtol=0, atol=1e-4)


def test_a_wrong_setting_is_named():
    with pytest.raises(ValueError, match="contrast"):
        AugmentationSettings(contrast=-0.1)
