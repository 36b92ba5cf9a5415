"""What `roi` makes of files without a window: crops that were cut before, and whole mammograms."""

import cv2
import numpy as np
import pytest

from sgc_experiments.data.prepare import BytesTask, PrepareTask, prepare_bytes
from sgc_experiments.data.preprocess import PreprocessSettings, preprocess
from sgc_experiments.data.stages import stages_of_file
from tests.data.dicom_files import breast, dicom_bytes
from tests.data.test_plain_image import npy_bytes, picture_bytes

ROI = PreprocessSettings(input="roi", image_size=32)
FULL = (0.0, 0.0, 1e9, 1e9)
FORMATS = {
    "PNG": lambda pixels: picture_bytes(pixels, "PNG"),
    "TIFF": lambda pixels: picture_bytes(pixels, "TIFF"),
    "float NPY": lambda pixels: npy_bytes(pixels.astype(np.float32) / 7 - 1000),
    "DICOM": dicom_bytes,
    "DICOM, white is zero": lambda pixels: dicom_bytes(
        65535 - pixels, PhotometricInterpretation="MONOCHROME1"
    ),
}


def faint_lesion() -> np.ndarray:
    """(200, 200) uint16: a smooth lesion on noise, tissue up to the edges."""
    y, x = np.mgrid[:200, :200]
    lesion = 1000 * (np.hypot(y - 100, x - 100) < 30)
    noise = np.random.default_rng(0).normal(0, 150, (200, 200))
    return cv2.GaussianBlur(20_000 + lesion + noise, (0, 0), 2).astype(np.uint16)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_crop_without_a_window_keeps_the_surroundings_of_its_lesion(kind):
    crop = faint_lesion()
    expected, _ = preprocess(crop, FULL, ROI)
    prepared = prepare_bytes(BytesTask(FORMATS[kind](crop), FULL, ROI)).pixels
    assert (prepared == 0).mean() < 0.02
    assert np.abs(prepared.astype(int) - expected).max() < 0.01 * 65535


def test_the_steps_of_a_crop_are_shown_without_looking_for_a_breast_in_it(tmp_path):
    (tmp_path / "crop.png").write_bytes(FORMATS["PNG"](faint_lesion()))
    stages = stages_of_file(PrepareTask(str(tmp_path / "crop.png"), FULL, ROI))
    assert (stages.breast == 0).mean() < 0.02


def test_calcifications_are_as_bright_without_a_window_as_with_one():
    pixels = breast(400, 300, level=2000)
    pixels[200:204, 100:104] = 4095
    box = (80.0, 180.0, 120.0, 220.0)
    shown, not_shown = (
        prepare_bytes(BytesTask(dicom_bytes(pixels, **window), box, ROI)).pixels.astype(int)
        for window in ({"WindowCenter": 2048, "WindowWidth": 4096}, {})
    )
    assert shown.max() == 65535  # above the percentiles of the breast, in the headroom
    assert np.abs(shown - not_shown).max() < 0.03 * 65535
