"""A file → a calibrated mammogram, or a reason why not.

For a DICOM file the order is fixed: decode → modality LUT → padding mask → VOI (the first window,
else percentiles of the breast) → inversion of MONOCHROME1 → padding to 0. The result is uint16
over the full range, bright = dense.

Files are not trusted: `dicom_header` reads what is needed and nothing else, `codestream` reads the
image's own idea of its size before a decoder sees it, and what decoders do wrong in spite of that
is contained by `decode_pool`.
"""

import hashlib
import stat
from pathlib import Path

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.dicom_header import (
    MAX_SIDE,
    Header,
    check_header,
    get_number,
    get_value,
    is_dicom,
    parse,
    silenced,
)
from sgc_experiments.data.pixel_data import decode, decode_jpeg_file
from sgc_experiments.data.plain_image import decode_plain, plain_format, to_brightness
from sgc_experiments.data.preprocess import FULL_RANGE, shown_range
from sgc_experiments.data.rejection import Reason, RejectedFile

MAX_FILE_BYTES = 2 * MAX_SIDE**2 + (8 << 20)


def read_bytes(path: Path) -> bytes:
    """Read a regular file of a plausible size.

    Raises:
        RejectedFile: it cannot be read, or is too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RejectedFile(Reason.UNREADABLE)
        if status.st_size > MAX_FILE_BYTES:
            raise RejectedFile(Reason.FILE_TOO_LARGE)
        return path.read_bytes()
    except OSError:
        raise RejectedFile(Reason.UNREADABLE) from None


def read_image(path: Path, box: Box | None = None) -> tuple[np.ndarray, str]:
    """Read a file as a calibrated mammogram.

    Args:
        path: the file.
        box: the lesion that the image will be cut out by; None if it stays whole.

    Returns:
        (H, W) uint16 over the full range, bright = dense, 0 = padding; and the SHA-256 of the file.

    Raises:
        RejectedFile: with the reason.
    """
    data = read_bytes(path)
    return decode_file(data, box), hashlib.sha256(data).hexdigest()


def decode_file(data: bytes, box: Box | None = None) -> np.ndarray:
    """Decode a DICOM, JPEG, PNG, TIFF or NPY file, told by its content, never by its name.

    Args:
        data: the whole file.
        box: the lesion that the image will be cut out by; None if it stays whole.

    Returns:
        (H, W) uint16 over the full range, bright = dense, 0 = padding.

    Raises:
        RejectedFile: with the reason.
    """
    if is_dicom(data):
        return calibrate(*read_stored(data), box)
    if data[:2] == b"\xff\xd8":
        return decode_jpeg_file(data)
    if name := plain_format(data):
        return to_brightness(decode_plain(data, name), box)
    raise RejectedFile(Reason.NOT_AN_IMAGE)


def read_stored(data: bytes) -> tuple[np.ndarray, Header, Dataset]:
    """Read the stored values of a DICOM file: no LUT, no inversion.

    Returns:
        (H, W) integers, the checked header, and the whitelisted tags without the pixels.

    Raises:
        RejectedFile: with the reason.
    """
    with silenced():
        dataset, syntax = parse(data)
        header = check_header(dataset, syntax)
        pixels = dataset.PixelData
        del dataset.PixelData
        return decode(pixels, header), header, dataset


def calibrate(
    stored: np.ndarray, header: Header, dataset: Dataset, box: Box | None = None
) -> np.ndarray:
    """Turn stored values into the brightness that a radiologist sees.

    Each step depends on a pixel's stored value alone, so it is applied to the table of all stored
    values, and to the image by looking up.

    Args:
        stored: (H, W) integers of 8 or 16 bits.
        header: the facts about them.
        dataset: the modality LUT, if any.
        box: the lesion that the image will be cut out by; None if it stays whole.

    Returns:
        (H, W) uint16 over the full range, bright = dense, 0 = padding.

    Raises:
        RejectedFile: the modality LUT is broken, or the image is blank.
    """
    index = stored.view(f"u{stored.itemsize}")
    every_value = np.arange(2 ** (8 * stored.itemsize)).astype(index.dtype).view(stored.dtype)
    values = _modality(every_value, dataset)
    padding = np.zeros(len(values), bool)
    if header.padding is not None:
        first, last = header.padding
        padding = (every_value >= first) & (every_value <= last)
    if header.window is not None:
        brightness = apply_window(values, *header.window)
        if header.inverted:
            brightness = 1 - brightness
    else:
        if header.inverted:
            values = -values
        if padding.any():
            seen = (np.bincount(index.ravel(), minlength=len(values)) > 0) & ~padding
            if not seen.any():
                raise RejectedFile(Reason.BLANK)
            values[padding] = values[seen].min()  # air: never to be taken for the breast
        low, high = shown_range(values[index], box)
        brightness = np.clip((values - low) / (high - low), 0, 1)
    brightness[padding] = 0
    return cv2.LUT(index, np.rint(brightness * FULL_RANGE).astype(np.uint16))


def apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Apply a VOI window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3) for an output between 0 and 1.

    Args:
        values: after the modality LUT.
        center: the window's centre.
        width: its width, > 1 for LINEAR, > 0 otherwise.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -60, 60)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return np.clip((values - center) / width + 0.5, 0, 1)


def _modality(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Apply the modality LUT or rescale; float32 keeps 16-bit integers exact."""
    if get_value(dataset, "ModalityLUTSequence"):
        try:
            values = apply_modality_lut(stored, dataset).astype(np.float32)
        except Exception:
            raise RejectedFile(Reason.BAD_HEADER) from None
    else:
        slope = get_number(dataset, "RescaleSlope")
        intercept = get_number(dataset, "RescaleIntercept")
        values = stored.astype(np.float32)
        if slope is not None and slope != 1:
            values *= np.float32(slope)
        if intercept:
            values += np.float32(intercept)
    if not np.isfinite(values).all():
        raise RejectedFile(Reason.BAD_HEADER)
    return values
