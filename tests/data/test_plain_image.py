"""PNG, TIFF and NPY files: what is read, and what is refused before it can do harm."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sgc_experiments.data.dicom import decode_file
from sgc_experiments.data.plain_image import decode_plain, plain_format
from sgc_experiments.data.rejection import Reason, RejectedFile
from tests.data.dicom_files import breast, dicom_bytes

IMAGE = breast()


def picture_bytes(pixels, kind, mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def npy_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(text, content=b"", version=b"\x01\x00"):
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode() + content


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (picture_bytes(IMAGE, "PNG"), "PNG"),
        (picture_bytes(IMAGE, "TIFF"), "TIFF"),
        (picture_bytes(IMAGE, "TIFF", compression="tiff_lzw"), "TIFF"),
        (picture_bytes(IMAGE, "TIFF", compression="tiff_adobe_deflate"), "TIFF"),
        (npy_bytes(IMAGE), "NPY"),
        (npy_bytes(np.asfortranarray(IMAGE)), "NPY"),
        (npy_bytes(IMAGE.astype(">u2")), "NPY"),
        (npy_bytes(IMAGE.astype(np.float64)), "NPY"),
    ],
)
def test_values_come_out_as_they_were_written(data, kind):
    assert plain_format(data) == kind
    assert np.array_equal(decode_plain(data, kind), IMAGE)


def test_deep_files_are_stretched_as_a_dicom_file_without_a_window():
    expected = decode_file(dicom_bytes(IMAGE)).astype(int)
    for data in (
        picture_bytes(IMAGE, "PNG"),
        picture_bytes(IMAGE, "TIFF"),
        npy_bytes(IMAGE.astype(np.float32) / 4095),
    ):
        assert np.abs(decode_file(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", [None, "RGB", "P"])
def test_eight_bit_files_are_taken_as_they_are(mode):
    levels = (IMAGE >> 4).astype(np.uint8)
    data = picture_bytes(levels, "PNG", mode)
    assert np.array_equal(decode_file(data), levels.astype(np.uint16) * 257)


@pytest.mark.parametrize("mode", [None, "RGB"])
def test_jpeg_files_are_read_if_every_pixel_is_grey(mode):
    levels = (IMAGE >> 4).astype(np.uint8)
    expected = decode_file(picture_bytes(levels, "JPEG", quality=95))
    assert np.abs(expected.astype(int) // 257 - levels).mean() < 4
    assert np.array_equal(decode_file(picture_bytes(levels, "JPEG", mode, quality=95)), expected)


class Explosive:
    """An object whose unpickling would be seen."""

    def __reduce__(self):
        return (pytest.fail, ("an NPY file was unpickled",))


COLOURED = np.dstack([IMAGE >> 4, IMAGE >> 5, IMAGE >> 4]).astype(np.uint8)
LARGE = "{'descr': '<u2', 'fortran_order': False, 'shape': (%s), }"
PAGES = [Image.fromarray(IMAGE), Image.fromarray(IMAGE)]


def multi_page():
    buffer = io.BytesIO()
    PAGES[0].save(buffer, "TIFF", save_all=True, append_images=PAGES[1:])
    return buffer.getvalue()


def white_is_zero():
    data = picture_bytes(IMAGE, "TIFF")
    entry = struct.pack("<HHI", 262, 3, 1)
    place = data.index(entry) + len(entry)
    return data[:place] + struct.pack("<H", 0) + data[place + 2 :]


def png_of(width, height):
    """A PNG whose header promises that size, with few bytes behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + picture_bytes(IMAGE, "PNG")[33:]


BROKEN = {
    "several pages": (multi_page(), Reason.MANY_FRAMES),
    "colours": (picture_bytes(COLOURED, "PNG"), Reason.MANY_SAMPLES),
    "colours in a JPEG": (picture_bytes(COLOURED, "JPEG"), Reason.MANY_SAMPLES),
    "inks in a JPEG": (picture_bytes(COLOURED, "JPEG", "CMYK"), Reason.MANY_SAMPLES),
    "transparency": (picture_bytes(COLOURED, "PNG", "RGBA"), Reason.MANY_SAMPLES),
    "one bit": (picture_bytes(COLOURED, "PNG", "1"), Reason.PIXEL_TYPE),
    "white is zero": (white_is_zero(), Reason.WHITE_IS_ZERO),
    "truncated PNG": (picture_bytes(IMAGE, "PNG")[:-3000], Reason.UNDECODABLE),
    "truncated TIFF": (picture_bytes(IMAGE, "TIFF")[:200], Reason.UNDECODABLE),
    "only a signature": (b"\x89PNG\r\n\x1a\n", Reason.UNDECODABLE),
    "lying PNG": (png_of(8000, 8000), Reason.UNDECODABLE),
    "large PNG": (png_of(100_000, 100_000), Reason.IMAGE_SIZE),
    "small": (picture_bytes(IMAGE[:20, :20], "PNG"), Reason.IMAGE_SIZE),
    "objects": (npy_bytes(np.array([[Explosive()]]), allow_pickle=True), Reason.PIXEL_TYPE),
    "pickle": (pickle.dumps(Explosive()), Reason.NOT_AN_IMAGE),
    "complex": (npy_bytes(IMAGE.astype(complex)), Reason.PIXEL_TYPE),
    "text": (npy_bytes(IMAGE.astype("U4")), Reason.PIXEL_TYPE),
    "int64": (npy_bytes(IMAGE.astype(np.int64)), Reason.PIXEL_TYPE),
    "records": (npy_bytes(np.zeros((40, 40), [("a", "u2")])), Reason.PIXEL_TYPE),
    "a stack": (npy_bytes(np.zeros((2, 40, 40), np.uint16)), Reason.MANY_FRAMES),
    "a row": (npy_bytes(np.zeros(40, np.uint16)), Reason.BAD_HEADER),
    "NaN": (npy_bytes(np.where(IMAGE > 0, np.nan, 0.0)), Reason.NOT_FINITE),
    "huge NPY": (npy_header(LARGE % "10**9, 10**9"), Reason.BAD_HEADER),
    "large NPY": (npy_header(LARGE % "1000000, 1000000"), Reason.IMAGE_SIZE),
    "short NPY": (npy_header(LARGE % "64, 64", bytes(100)), Reason.TRUNCATED),
    "long NPY": (npy_bytes(IMAGE) + b"x", Reason.CONTRADICTION),
    "code in the header": (npy_header("__import__('os').abort()"), Reason.BAD_HEADER),
    "unknown version": (npy_header("{}", version=b"\x09\x00"), Reason.BAD_HEADER),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_grey_image_is_refused_with_the_reason(case):
    data, reason = BROKEN[case]
    with pytest.raises(RejectedFile) as caught:
        decode_file(data)
    assert caught.value.reason == reason
