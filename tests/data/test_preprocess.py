"""Geometry and intensity, step by step; boxes end where the lesion's pixels end."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from sgc_experiments.data.preprocess import (
    FULL_RANGE,
    PreprocessSettings,
    Window,
    breast_mask,
    breast_window,
    clip_box,
    crop,
    fit_square,
    lesion_window,
    preprocess,
)
from sgc_experiments.data.rejection import RejectedFile

PICTURES = Path(__file__).parent / "pictures"
LESION = (180.0, 500.0, 260.0, 560.0)
WHOLE = PreprocessSettings(input="whole", image_size=128)
ROI = PreprocessSettings(input="roi", image_size=64)


def mammogram(*, right: bool = False, marker: bool = True, lesion: int = 20_000) -> np.ndarray:
    """(1000, 800) uint16: a smooth breast of level 30,000 with a bright lesion, a label in the air
    and a scanner's bright border on two edges."""
    y, x = np.mgrid[:1000, :800]
    radius = ((y - 520) / 400) ** 2 + (x / 500) ** 2
    image = np.where(radius < 1, 30_000 * np.sqrt(np.clip(1 - radius**8, 0, 1)), 0)
    image += np.where(radius < 1, 1500 * np.sin(x / 9) * np.sin(y / 11), 0)
    x0, y0, x1, y1 = map(int, LESION)
    image[y0:y1, x0:x1] += lesion
    if marker:
        letters = np.zeros(image.shape, np.uint8)
        cv2.putText(letters, "L CC", (600, 80), cv2.FONT_HERSHEY_SIMPLEX, 2, 1, 8)
        image[letters > 0] = 60_000
        image[:4], image[:, -4:] = 50_000, 50_000
    image = np.clip(image, 0, FULL_RANGE).astype(np.uint16)
    return image[:, ::-1].copy() if right else image


def test_the_mask_is_the_breast_without_labels_and_borders():
    mask = breast_mask(mammogram())
    y, x = np.mgrid[:1000, :800]
    truth = ((y - 520) / 400) ** 2 + (x / 500) ** 2 < 1
    assert (mask & truth).sum() / (mask | truth).sum() > 0.98
    assert not mask[:100, 560:].any()
    assert not mask[:, -4:].any()


@pytest.mark.parametrize("air", [0, 6000])
def test_the_mask_withstands_film_base_noise_and_holes(air):
    noise = np.random.default_rng(0).normal(0, 500, (1000, 800))
    image = np.clip(mammogram(marker=False) + air + noise, 0, FULL_RANGE)
    image[450:480, 100:130] = air  # as dark as air, but inside
    mask = breast_mask(image)
    truth = breast_mask(mammogram(marker=False))
    assert (mask & truth).sum() / (mask | truth).sum() > 0.97
    assert mask[450:480, 100:130].all()


def test_whole_is_the_breast_alone_with_the_chest_wall_to_the_left():
    left, box = preprocess(mammogram(), LESION, WHOLE)
    mirrored = (800 - LESION[2], LESION[1], 800 - LESION[0], LESION[3])
    right, right_box = preprocess(mammogram(right=True), mirrored, WHOLE)
    assert left.shape == (128, 128)
    assert left.dtype == np.uint16
    assert np.abs(left.astype(int) - right).max() <= 1
    np.testing.assert_allclose(box, right_box, atol=1e-4)
    # 800 rows and 500 columns of breast, with margins above and below: aspect kept, rest is 0.
    assert (left[:, 0] > 0).sum() > 110
    assert not left[:, 90:].any()
    assert np.median(left[50:80, 5:40]) == pytest.approx(30_000, rel=0.05)


@pytest.mark.parametrize("settings", [WHOLE, ROI])
@pytest.mark.parametrize("right", [False, True])
def test_the_box_ends_where_the_lesion_ends(settings, right):
    lesion = (800 - LESION[2], LESION[1], 800 - LESION[0], LESION[3]) if right else LESION
    bright, box = preprocess(mammogram(right=right, lesion=33_000), lesion, settings)
    x0, y0, x1, y1 = np.rint(box).astype(int)
    inside = bright[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
    around = bright.copy()
    around[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 0
    assert inside.size > 0
    assert inside.min() > around.max()


def test_roi_is_a_centred_square_with_context():
    _, box = preprocess(mammogram(), LESION, ROI)
    # 80 × 1.75 = 140 pixels become 64.
    np.testing.assert_allclose(box[2] - box[0], 80 * 64 / 140, rtol=1e-5)
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, 32, atol=0.5)


def test_a_point_like_lesion_gets_surroundings():
    window = lesion_window((400, 400, 402, 402), (1000, 800), context=1.75, minimum=0.05)
    assert window == Window(376, 376, 426, 426)


def test_beyond_the_edge_the_image_is_mirrored():
    image = np.arange(12).reshape(3, 4)
    expected = [[1, 0, 0, 1], [1, 0, 0, 1], [5, 4, 4, 5]]
    np.testing.assert_array_equal(crop(image, Window(-2, -1, 2, 2)), expected)


def test_roi_keeps_physical_contrast_and_removes_gain_and_offset():
    def contrast(lesion: int, gain: float = 1.0, offset: int = 0) -> float:
        image = mammogram(marker=False, lesion=lesion) * gain
        image[image > 0] += offset
        square, box = preprocess(image.astype(np.uint16), LESION, ROI)
        x0, y0, x1, y1 = np.rint(box).astype(int)
        inside = square[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].mean()
        return float(inside - square[y0 + 2 : y1 - 2, 2 : x0 - 2].mean())

    assert contrast(2000) == pytest.approx(2 * contrast(1000), rel=0.1)
    assert contrast(2000, gain=0.5, offset=5000) == pytest.approx(contrast(2000), rel=0.05)


def test_shrinking_averages_over_areas():
    image = np.zeros((64, 64))
    image[10, 20] = 256
    square, scale, offset = fit_square(image, 16)
    assert square.sum() == pytest.approx(16)
    assert square[2, 5] == pytest.approx(16)
    assert (scale, offset) == ((0.25, 0.25), (0, 0))


def test_the_aspect_is_kept_and_the_rest_is_zero():
    square, scale, offset = fit_square(np.ones((50, 100)), 20)
    np.testing.assert_array_equal(square.any(axis=1), [False] * 5 + [True] * 10 + [False] * 5)
    assert (scale, offset) == ((0.2, 0.2), (0, 5))


def test_windows_stay_inside_for_the_breast():
    mask = np.zeros((100, 80), bool)
    mask[10:90, :40] = True
    assert breast_window(mask, margin=0.05) == Window(0, 6, 44, 94)


def test_boxes_are_clipped_or_dropped():
    assert clip_box((-5, 10, 900, 20), (100, 80)) == (0, 10, 80, 20)
    assert clip_box((90, 10, 95, 20), (100, 80)) is None


def test_without_a_lesion_whole_has_no_box_and_roi_is_refused():
    _, box = preprocess(mammogram(), None, WHOLE)
    assert np.isnan(box).all()
    with pytest.raises(RejectedFile, match="outside"):
        preprocess(mammogram(), (900.0, 10.0, 950.0, 20.0), ROI)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((100, 80), np.uint16), "blank"),
        (np.pad(np.full((2, 2), 9, np.uint16), 60), "no breast|blank"),
    ],
)
def test_images_without_a_breast_are_refused(image, reason):
    with pytest.raises(RejectedFile, match=reason):
        preprocess(image, None, WHOLE)


def test_clahe_spreads_contrast_and_leaves_the_background():
    plain, _ = preprocess(mammogram(), LESION, WHOLE)
    settings = PreprocessSettings(input="whole", image_size=128, clahe=True)
    equalised, _ = preprocess(mammogram(), LESION, settings)
    np.testing.assert_array_equal(equalised == 0, plain == 0)
    assert equalised[50:90, 5:40].std() > 1.5 * plain[50:90, 5:40].std()


def stages() -> dict[str, np.ndarray]:
    """Every stage as an 8-bit picture that a person can look at."""
    image = mammogram()
    equalised = PreprocessSettings(input="whole", image_size=128, clahe=True)
    pictures = {
        "1_calibrated": cv2.resize(image, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA),
        "2_mask": breast_mask(image)[::5, ::5].astype(np.uint16) * FULL_RANGE,
        "3_whole": preprocess(image, LESION, WHOLE)[0],
        "4_whole_clahe": preprocess(image, LESION, equalised)[0],
        "5_roi": preprocess(image, LESION, ROI)[0],
    }
    return {name: (picture // 257).astype(np.uint8) for name, picture in pictures.items()}


@pytest.mark.parametrize("name", list(stages()))
def test_every_stage_looks_as_it_did(name):
    """After a wanted change, write the pictures anew (`python -m tests.data.test_preprocess`), look
    at them, and raise `cache.VERSION`."""
    known = cv2.imread(str(PICTURES / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    assert np.abs(stages()[name].astype(int) - known).max() <= 2


def test_a_box_of_the_whole_image_says_that_it_is_a_crop_already():
    image = np.random.default_rng(0).integers(15000, 25000, (96, 96)).astype(np.uint16)
    image[20:70, 60:90] += 25000  # brighter on the right, where a breast would be turned
    settings = PreprocessSettings("roi", 32)
    pixels, box = preprocess(image, (0.0, 0.0, 1e9, 1e9), settings)
    assert list(box) == [0, 0, 32, 32]
    assert pixels[15, 25] > pixels[15, 5]
    around, _ = preprocess(image, (8.0, 8.0, 96.0, 96.0), settings)
    assert not np.array_equal(pixels, around)


if __name__ == "__main__":
    for name, picture in stages().items():
        cv2.imwrite(str(PICTURES / f"{name}.png"), picture)
