"""PNG, TIFF and NPY: pictures without a header that says how they are meant to be shown.

Eight-bit files have been through somebody's window already and are taken as they are. Deeper and
floating-point ones are stretched between percentiles of the breast, as a DICOM file without a
window is: what counts is the order of the values, not their range.

Nothing is ever unpickled: the header of an NPY file is read by itself, and an array of objects is
refused before its content is looked at.
"""

import io
import warnings

import numpy as np
from PIL import Image

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.dicom_header import MAX_SIDE, MIN_SIDE
from sgc_experiments.data.preprocess import FULL_RANGE, shown_range
from sgc_experiments.data.rejection import Reason, RejectedFile

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x93NUMPY": "NPY",
}
_GREY = frozenset({"L", "I;16", "I;16L", "I;16B", "I", "F"})
_COLOUR = frozenset({"RGB", "P"})  # accepted where every pixel is grey
_WHITE_IS_ZERO, _PHOTOMETRIC_TAG = 0, 262
_NUMBERS = frozenset({"u1", "u2", "i2", "f4", "f8"})
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def plain_format(data: bytes) -> str | None:
    """Return "PNG", "TIFF" or "NPY" by a file's first bytes, or None if it is none of them."""
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)


def decode_plain(data: bytes, name: str) -> np.ndarray:
    """Read the values of a PNG, TIFF or NPY file.

    Args:
        data: the whole file.
        name: from `plain_format`.

    Returns:
        (H, W), bright = dense; uint8, uint16, int16, int32, float32 or float64.

    Raises:
        RejectedFile: with the reason.
    """
    values = _read_array(data) if name == "NPY" else _read_picture(data, name)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RejectedFile(Reason.NOT_FINITE)
    return values


def to_brightness(values: np.ndarray, box: Box | None = None) -> np.ndarray:
    """Turn the values of a file (H, W) into uint16 over the full range.

    Args:
        values: bright = dense.
        box: the lesion that the image will be cut out by; None if it stays whole.

    Raises:
        RejectedFile: the image is blank, or there is no breast in it.
    """
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * 257
    values = values.astype(np.float32)
    low, high = shown_range(values, box)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * FULL_RANGE).astype(np.uint16)


def _check_sides(height: int, width: int) -> None:
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise RejectedFile(Reason.IMAGE_SIZE)


def _read_picture(data: bytes, name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[name]) as picture:
                _check_picture(picture)
                picture.load()
                if picture.mode in _GREY:
                    return np.asarray(picture)
                colours = np.asarray(picture.convert("RGB"))
    except (MemoryError, RejectedFile):
        raise
    except Image.DecompressionBombError:
        raise RejectedFile(Reason.IMAGE_SIZE) from None
    # A broken file can raise nearly anything, and messages quote it.
    except Exception:
        raise RejectedFile(Reason.UNDECODABLE) from None
    if (colours != colours[..., :1]).any():
        raise RejectedFile(Reason.MANY_SAMPLES)
    return colours[..., 0]


def _check_picture(picture: Image.Image) -> None:
    """Check what the file says of itself, before it is decoded."""
    _check_sides(picture.height, picture.width)
    if getattr(picture, "n_frames", 1) != 1:
        raise RejectedFile(Reason.MANY_FRAMES)
    if picture.mode not in _GREY | _COLOUR:
        known = picture.mode in ("1", "LA", "La", "PA")
        raise RejectedFile(Reason.PIXEL_TYPE if known else Reason.MANY_SAMPLES)
    tags = getattr(picture, "tag_v2", {})
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        raise RejectedFile(Reason.WHITE_IS_ZERO)


def _read_array(data: bytes) -> np.ndarray:
    buffer = io.BytesIO(data)
    try:
        read_header = _HEADERS[np.lib.format.read_magic(buffer)]
        shape, fortran_order, dtype = read_header(buffer)
    except Exception:
        raise RejectedFile(Reason.BAD_HEADER) from None
    if dtype.hasobject or dtype.str[1:] not in _NUMBERS:
        raise RejectedFile(Reason.PIXEL_TYPE)
    if len(shape) != 2:
        raise RejectedFile(Reason.MANY_FRAMES if len(shape) == 3 else Reason.BAD_HEADER)
    _check_sides(*shape)
    content = data[buffer.tell() :]
    expected = shape[0] * shape[1] * dtype.itemsize
    if len(content) != expected:
        raise RejectedFile(Reason.TRUNCATED if len(content) < expected else Reason.CONTRADICTION)
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(values, dtype.newbyteorder("="))
