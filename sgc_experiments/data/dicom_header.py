"""The technical part of a DICOM header, read with suspicion.

Only whitelisted tags are read at all, so nothing that identifies a patient is ever in memory.
Transfer syntax and SOP class come from allow-lists, and the transfer syntax is judged from the file
meta information alone, because a deflated file would expand (389 KB → 400 MB) while it is parsed.
pydicom's warnings and messages quote header values: they are suppressed and replaced by a `Reason`.
"""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.config import IGNORE, settings
from pydicom.filereader import read_dataset
from pydicom.uid import (
    JPEG2000,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from sgc_experiments.data.rejection import Reason, RejectedFile

MAX_SIDE = 8192
MIN_SIDE = 32

NATIVE = frozenset({ExplicitVRLittleEndian, ImplicitVRLittleEndian})
JPEG_LOSSLESS = frozenset({JPEGLossless, JPEGLosslessSV1})
JPEG_LS = frozenset({JPEGLSLossless, JPEGLSNearLossless})
JPEG_2000 = frozenset({JPEG2000Lossless, JPEG2000})
RLE = frozenset({RLELossless})
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

_SYNTAXES = NATIVE | JPEG_LOSSLESS | JPEG_LS | JPEG_2000 | RLE
_SOP_CLASSES = {
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    "1.2.3.4",  # what VinDr-Mammo's de-identification left in the file meta information
    "",
}
_TAGS = [
    "SOPClassUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "PixelData",
]


@dataclass(frozen=True)
class Header:
    """The technical facts of one image, checked; nothing else of the header survives.

    Attributes:
        syntax: transfer syntax UID, on the allow-list.
        rows: height, 32 to 8,192.
        columns: width, the same.
        bits_allocated: 8 or 16.
        bits_stored: 1 to `bits_allocated`.
        signed: whether stored values are signed.
        inverted: whether the image is MONOCHROME1 (bright = air).
        padding: lowest and highest stored value that means padding, or None.
        window: centre, width and function of the first usable VOI window, or None.
    """

    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    padding: tuple[int, int] | None
    window: tuple[float, float, str] | None


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep pydicom from printing header values, and from validating what we check ourselves."""
    logger, mode = logging.getLogger("pydicom"), settings.reading_validation_mode
    disabled = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled, settings.reading_validation_mode = True, IGNORE
        try:
            yield
        finally:
            logger.disabled, settings.reading_validation_mode = disabled, mode


def is_dicom(data: bytes) -> bool:
    """Say whether a file has DICOM's mark after the preamble."""
    return data[128:132] == b"DICM"


def parse(data: bytes) -> tuple[Dataset, str]:
    """Parse the whitelisted tags of a DICOM file.

    Returns:
        The tags, and the transfer syntax, which was found on the allow-list before.

    Raises:
        RejectedFile: with the reason.
    """
    if not is_dicom(data):
        raise RejectedFile(Reason.NOT_AN_IMAGE)
    try:
        syntax, meta_class = _file_meta(data)
    # A broken header can raise nearly anything, and every message quotes values.
    except Exception:
        raise RejectedFile(Reason.BAD_HEADER) from None
    if syntax not in _SYNTAXES:
        raise RejectedFile(Reason.TRANSFER_SYNTAX)
    try:
        dataset = dcmread(io.BytesIO(data), specific_tags=list(_TAGS))
        del dataset.file_meta  # it holds an instance UID
        classes = {meta_class, str(dataset.get("SOPClassUID", ""))}
    except Exception:
        raise RejectedFile(Reason.BAD_HEADER) from None
    if not classes <= _SOP_CLASSES:
        raise RejectedFile(Reason.SOP_CLASS)
    return dataset, syntax


def _file_meta(data: bytes) -> tuple[str, str]:
    """Return transfer syntax and SOP class from group 0002, without touching what follows it."""
    buffer = io.BytesIO(data)
    buffer.seek(132)
    meta = read_dataset(
        buffer,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
    )
    # Convert every element: pydicom reads the group another way if the first one fails.
    values = {element.keyword: str(element.value) for element in meta}
    return values.get("TransferSyntaxUID", ""), values.get("MediaStorageSOPClassUID", "")


def check_header(dataset: Dataset, syntax: str) -> Header:
    """Check what a decoder would otherwise believe.

    Args:
        dataset: the whitelisted tags, from `parse`.
        syntax: the transfer syntax, on the allow-list.

    Raises:
        RejectedFile: with the reason.
    """
    if not isinstance(get_value(dataset, "PixelData"), bytes):
        raise RejectedFile(Reason.NO_PIXELS)
    if _integer(dataset, "NumberOfFrames", 1) != 1:
        raise RejectedFile(Reason.MANY_FRAMES)
    if _integer(dataset, "SamplesPerPixel", 1) != 1:
        raise RejectedFile(Reason.MANY_SAMPLES)
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not (MIN_SIDE <= rows <= MAX_SIDE and MIN_SIDE <= columns <= MAX_SIDE):
        raise RejectedFile(Reason.IMAGE_SIZE)
    allocated = _integer(dataset, "BitsAllocated")
    bits_stored = _integer(dataset, "BitsStored", allocated)
    representation = _integer(dataset, "PixelRepresentation", 0)
    photometric = str(get_value(dataset, "PhotometricInterpretation")).strip()
    if (
        allocated not in (8, 16)
        or not 1 <= bits_stored <= allocated
        or representation not in (0, 1)
        or photometric not in ("MONOCHROME1", "MONOCHROME2")
    ):
        raise RejectedFile(Reason.BAD_HEADER)
    return Header(
        syntax=syntax,
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=bits_stored,
        signed=representation == 1,
        inverted=photometric == "MONOCHROME1",
        padding=_padding(dataset),
        window=_first_window(dataset),
    )


def get_value(dataset: Dataset, keyword: str) -> Any:
    """Return a tag's value, or None; a value that cannot be converted is a broken header."""
    try:
        return dataset.get(keyword)
    except Exception:
        raise RejectedFile(Reason.BAD_HEADER) from None


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = get_value(dataset, keyword)
    if value is None or value == "":
        value = default
    if not isinstance(value, int):  # multi-valued, text, or missing without a default
        raise RejectedFile(Reason.BAD_HEADER)
    return int(value)


def get_number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of a tag as a finite number, or None."""
    value = get_value(dataset, keyword)
    if not isinstance(value, str) and hasattr(value, "__getitem__"):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    first = get_value(dataset, "PixelPaddingValue")
    if not isinstance(first, int):
        return None
    limit = get_value(dataset, "PixelPaddingRangeLimit")
    last = limit if isinstance(limit, int) else first
    return min(first, last), max(first, last)


def _first_window(dataset: Dataset) -> tuple[float, float, str] | None:
    """Return the first VOI window if it is one; a width below 1 is legal only for LINEAR_EXACT."""
    center, width = get_number(dataset, "WindowCenter"), get_number(dataset, "WindowWidth")
    function = str(get_value(dataset, "VOILUTFunction") or "LINEAR").strip().upper()
    if center is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return None
    return (center, width, function) if function in WINDOW_FUNCTIONS else None
