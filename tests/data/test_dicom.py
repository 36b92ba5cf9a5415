"""Every transfer syntax gives the same pixels, calibration follows the standard, the rest is
refused with a reason that tells nothing about the file."""

import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.encaps import encapsulate

from sgc_experiments.data.dicom import apply_window, read_image, read_stored
from sgc_experiments.data.rejection import Reason, RejectedFile
from tests.data.dicom_files import SYNTAXES, breast, dicom_bytes, jpeg_lossless, with_syntax

FULL = {"WindowCenter": 2048, "WindowWidth": 4096}


def image_of(tmp_path, data: bytes) -> np.ndarray:
    path = tmp_path / "image.dcm"
    path.write_bytes(data)
    return read_image(path)[0]


def reason_for(data: bytes) -> Reason:
    with pytest.raises(RejectedFile) as caught:
        read_stored(data)
    return caught.value.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_syntax_is_decoded_exactly(syntax, dtype):
    pixels = (breast() >> (4 if dtype == np.uint8 else 0)).astype(dtype)
    stored, _, _ = read_stored(dicom_bytes(pixels, syntax))
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, pixels)


def test_signed_values_and_overlay_bits():
    signed = breast().astype(np.int16) - 2048
    stored, _, _ = read_stored(dicom_bytes(signed))
    np.testing.assert_array_equal(stored, signed)

    polluted = breast() | 0x8000
    stored, _, _ = read_stored(dicom_bytes(polluted, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(stored, breast())


def test_the_window_maps_to_the_full_range(tmp_path):
    pixels = breast()
    image = image_of(tmp_path, dicom_bytes(pixels, **FULL))
    assert image.dtype == np.uint16
    np.testing.assert_allclose(image, pixels / 4095 * 65535, atol=0.6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [("LINEAR", [0, 0.5, 1]), ("LINEAR_EXACT", [0, 0.5, 1]), ("SIGMOID", [0.1192, 0.5, 0.8808])],
)
def test_window_functions_at_their_landmarks(function, expected):
    # The standard's LINEAR runs from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
    landmarks = {"LINEAR": [50, 99.5, 149]}.get(function, [50, 100, 150])
    result = apply_window(np.array(landmarks, np.float32), 100, 100, function)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_rescale_comes_before_the_window(tmp_path):
    plain = image_of(tmp_path, dicom_bytes(breast(), **FULL))
    window = {"WindowCenter": 2048 * 2 - 1000 - 0.5, "WindowWidth": 8191}
    rescaled = dicom_bytes(breast(), RescaleSlope=2, RescaleIntercept=-1000, **window)
    assert np.abs(image_of(tmp_path, rescaled).astype(int) - plain).max() <= 1


@pytest.mark.parametrize("window", [FULL, {}])
def test_monochrome1_is_inverted(tmp_path, window):
    upright = image_of(tmp_path, dicom_bytes(breast(), **window))
    inverted = dicom_bytes(4095 - breast(), PhotometricInterpretation="MONOCHROME1", **window)
    assert np.abs(image_of(tmp_path, inverted).astype(int) - upright).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [FULL, {}])
def test_padding_is_background_whatever_its_value(tmp_path, photometric, window):
    pixels = 4095 - breast() if photometric == "MONOCHROME1" else breast()
    clean = image_of(tmp_path, dicom_bytes(pixels, PhotometricInterpretation=photometric, **window))
    pixels[:, 60:] = 5000
    padded = dicom_bytes(
        pixels,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=4990,
        PixelPaddingRangeLimit=5010,
        **window,
    )
    np.testing.assert_array_equal(image_of(tmp_path, padded), clean)


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": [2048, 100], "WindowWidth": [4096, 1]},
        {"WindowCenter": ["2048", "7"], "WindowWidth": ["4096", "9"]},
    ],
)
def test_the_first_of_several_windows_counts(tmp_path, window):
    one = image_of(tmp_path, dicom_bytes(breast(), **FULL))
    np.testing.assert_array_equal(image_of(tmp_path, dicom_bytes(breast(), **window)), one)


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 2048, "WindowWidth": 0.5},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 2048},
        {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "CUBIC"},
    ],
)
def test_unusable_windows_give_way_to_breast_percentiles(tmp_path, window):
    image = image_of(tmp_path, dicom_bytes(breast(), **window))
    np.testing.assert_array_equal(image, image_of(tmp_path, dicom_bytes(breast())))
    assert image[0, 63] == 0
    assert image.max() == 65535
    assert 0.4 < np.median(image[40:56, :32]) / 65535 < 0.7


def test_a_jpeg_of_a_mirror_is_read(tmp_path):
    pixels = (breast() >> 4).astype(np.uint8)
    path = tmp_path / "1-204.jpg"
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
    image, _ = read_image(path)
    assert np.abs(image / 257 - pixels).max() <= 4


def test_sop_classes_of_the_datasets_are_read():
    for uid in ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.3.4"):
        read_stored(dicom_bytes(breast(), SOPClassUID=uid))
    read_stored(
        dicom_bytes(breast()).replace(b"1.2.840.10008.5.1.4.1.1.1.2", b"1.2.3.4" + b"\0" * 20)
    )


REFUSED = {
    "empty": (b"", Reason.NOT_AN_IMAGE),
    "text": (b"hello" * 100, Reason.NOT_AN_IMAGE),
    "preamble only": (b"\0" * 128 + b"DICM", Reason.TRANSFER_SYNTAX),
    "truncated header": (dicom_bytes(breast())[:400], Reason.NO_PIXELS),
    "structured report": (
        dicom_bytes(breast(), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"),
        Reason.SOP_CLASS,
    ),
    "no pixels": (dicom_bytes(breast(), PixelData=None), Reason.NO_PIXELS),
    "no rows": (dicom_bytes(breast(), Rows=None), Reason.BAD_HEADER),
    "rows of zero": (dicom_bytes(breast(), Rows=0), Reason.IMAGE_SIZE),
    "huge rows": (dicom_bytes(breast(), Rows=65535), Reason.IMAGE_SIZE),
    "many rows": (dicom_bytes(breast(), Rows=[96, 96]), Reason.BAD_HEADER),
    "two frames": (dicom_bytes(breast(), NumberOfFrames=2), Reason.MANY_FRAMES),
    "colour": (dicom_bytes(breast(), SamplesPerPixel=3), Reason.MANY_SAMPLES),
    "palette": (
        dicom_bytes(breast(), PhotometricInterpretation="PALETTE COLOR"),
        Reason.BAD_HEADER,
    ),
    "32 bits": (dicom_bytes(breast(), BitsAllocated=32), Reason.BAD_HEADER),
    "bits stored of 17": (dicom_bytes(breast(), BitsStored=17), Reason.BAD_HEADER),
    "short native data": (dicom_bytes(breast(), Rows=97), Reason.TRUNCATED),
    "long native data": (dicom_bytes(breast(), Rows=90), Reason.CONTRADICTION),
    "jpeg baseline": (
        with_syntax(dicom_bytes(breast(), "j2k"), "1.2.840.10008.1.2.4.50"),
        Reason.TRANSFER_SYNTAX,
    ),
    "another codec's stream": (
        with_syntax(dicom_bytes(breast(), "j2k"), "1.2.840.10008.1.2.4.80"),
        Reason.CONTRADICTION,
    ),
    "lossy frame in a lossless syntax": (
        dicom_bytes(
            breast(),
            "jpegll",
            PixelData=encapsulate([jpeg_lossless(breast()).replace(b"\xff\xc3", b"\xff\xc1")]),
        ),
        Reason.CONTRADICTION,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_files_are_refused(case):
    data, reason = REFUSED[case]
    assert reason_for(data) == reason


@pytest.mark.parametrize("syntax", ["rle", "jpegls", "j2k", "jpegll"])
def test_a_header_that_lies_about_the_codestream_is_refused_before_decoding(syntax):
    for lie in ({"Rows": 8192, "Columns": 8192}, {"Rows": 33}, {"BitsAllocated": 8}):
        lie = lie | ({"BitsStored": 8} if "BitsAllocated" in lie else {})
        assert reason_for(dicom_bytes(breast(), syntax, **lie)) == Reason.CONTRADICTION


@pytest.mark.parametrize("syntax", ["jpegls", "j2k", "jpegll"])
def test_a_truncated_stream_is_refused(syntax):
    data = dicom_bytes(breast(), syntax)
    start = data.index(b"\xff\xd8" if syntax != "j2k" else b"\xff\x4f\xff\x51")
    (length,) = struct.unpack_from("<I", data, start - 4)
    half = data[start : start + length // 4 * 2]
    broken = dicom_bytes(breast(), syntax, PixelData=encapsulate([half]))
    assert reason_for(broken) == Reason.TRUNCATED


def test_a_truncated_rle_stream_is_refused_although_the_decoder_panics():
    data = dicom_bytes(breast(), "rle")
    stream = data[data.index(b"\x02\x00\x00\x00\x40\x00\x00\x00") :]
    for size in (60, 64, 70, 400, 2000):
        broken = dicom_bytes(breast(), "rle", PixelData=encapsulate([stream[:size]]))
        assert reason_for(broken) in (Reason.TRUNCATED, Reason.CONTRADICTION, Reason.UNDECODABLE)


def test_deflated_data_is_not_even_inflated():
    bomb = zlib.compress(b"\0" * 50_000_000)[2:-4]
    data = dicom_bytes(breast(), "j2k")
    data = with_syntax(data, "1.2.840.10008.1.2.1.99")
    start = data.index(b"\x08\x00\x16\x00")
    assert reason_for(data[:start] + bomb) == Reason.TRANSFER_SYNTAX


def test_blank_images_are_refused(tmp_path):
    with pytest.raises(RejectedFile, match="blank"):
        image_of(tmp_path, dicom_bytes(np.full((96, 64), 7, np.uint16)))
    with pytest.raises(RejectedFile, match="blank"):
        image_of(tmp_path, dicom_bytes(np.full((96, 64), 7, np.uint16), PixelPaddingValue=7))


def test_special_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(RejectedFile, match="cannot be read"):
            read_image(path)


def test_nothing_of_a_header_is_printed_logged_or_kept(tmp_path, caplog, capfd):
    marker = "MARKERNAME"
    planted = {
        "PatientName": marker,
        "PatientID": marker,
        "StudyInstanceUID": marker,
        "AccessionNumber": marker * 3,  # too long for its VR: pydicom would warn with the value
        "InstitutionName": marker,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = dicom_bytes(breast(), **planted)
    caplog.clear()  # pydicom complained while the file was written
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, header, dataset = read_stored(good)
        with pytest.raises(RejectedFile) as refused:
            read_stored(good.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00LO"))
    seen = [*caplog.messages, *map(str, caught), *capfd.readouterr()]
    seen += [str(dataset), repr(header), repr(refused.value), str(refused.value.__cause__)]
    assert marker not in "".join(seen)
