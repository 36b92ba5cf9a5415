"""Pixel data → stored values, one pinned decoder per transfer syntax.

gdcm is never used: it aborts the process on a lying JPEG-LS header. Decoders get a canonical frame
made from what was checked, not the file's own encapsulation, so that no offset table can point them
elsewhere.
"""

import io
import struct
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_fragments, parse_basic_offsets
from pydicom.filewriter import dcmwrite
from pydicom.pixels import get_decoder
from pydicom.uid import UID, SecondaryCaptureImageStorage
from rle.rle import decode_segment

from sgc_experiments.data import codestream
from sgc_experiments.data.dicom_header import (
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    MAX_SIDE,
    MIN_SIDE,
    NATIVE,
    RLE,
    Header,
)
from sgc_experiments.data.rejection import Reason, RejectedFile

# Named, so that results do not depend on what else is installed.
_PLUGINS: dict[str, str] = {
    syntax: plugin
    for plugin, syntaxes in (("pyjpegls", JPEG_LS), ("pylibjpeg", JPEG_2000))
    for syntax in syntaxes
}


def decode(pixels: bytes, header: Header) -> np.ndarray:
    """Decode the pixel data of a file.

    Args:
        pixels: the value of the PixelData element.
        header: the checked facts about it.

    Returns:
        (H, W) integers of the header's depth and sign.

    Raises:
        RejectedFile: with the reason.
    """
    if header.syntax in NATIVE:
        return _native(pixels, header)
    try:
        buffer = io.BytesIO(pixels)
        parse_basic_offsets(buffer)
        stream = b"".join(generate_fragments(buffer))
    except (ValueError, struct.error):
        raise RejectedFile(Reason.TRUNCATED) from None
    if header.syntax in RLE:
        decoder = _rle
    else:
        _check_stream(stream, header)
        decoder = _jpeg_lossless if header.syntax in JPEG_LOSSLESS else _plugin
    try:
        image = decoder(stream, header)
    except (KeyboardInterrupt, SystemExit, MemoryError, RejectedFile):
        raise
    # Decoders written in Rust panic with a BaseException, and all messages quote the file.
    except BaseException:
        raise RejectedFile(Reason.UNDECODABLE) from None
    if image.shape != (header.rows, header.columns):
        raise RejectedFile(Reason.CONTRADICTION)
    return image


def _native(pixels: bytes, header: Header) -> np.ndarray:
    dtype = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    count = header.rows * header.columns
    if len(pixels) < count * dtype.itemsize:
        raise RejectedFile(Reason.TRUNCATED)
    if len(pixels) > count * dtype.itemsize + 1:
        raise RejectedFile(Reason.CONTRADICTION)
    image = np.frombuffer(pixels, dtype, count).reshape(header.rows, header.columns)
    # Old files keep overlays in the unused high bits; the shift extends the sign.
    unused = header.bits_allocated - header.bits_stored
    return (image << unused) >> unused if unused else image


def _rle(stream: bytes, header: Header) -> np.ndarray:
    """Decode segment by segment: the frame decoder ignores what a short header leaves over."""
    pixels = header.rows * header.columns
    segments = codestream.rle_segments(
        stream, pixels=pixels, bytes_per_pixel=header.bits_allocated // 8
    )
    planes = [decode_segment(segment) for segment in segments]
    if any(len(plane) != pixels for plane in planes):
        raise RejectedFile(Reason.CONTRADICTION)
    dtype = np.dtype(f"<{'i' if header.signed else 'u'}{len(planes)}")
    low_byte_first = [np.frombuffer(plane, np.uint8) for plane in reversed(planes)]
    return np.stack(low_byte_first, axis=-1).view(dtype).reshape(header.rows, header.columns)


def _check_stream(stream: bytes, header: Header) -> None:
    """Compare the codestream's own geometry with the header, before a decoder believes it."""
    two_thousand = header.syntax in JPEG_2000
    size = codestream.jpeg2000_size(stream) if two_thousand else codestream.jpeg_size(stream)
    process = 0 if two_thousand else 0xF7 if header.syntax in JPEG_LS else 0xC3
    if (
        size[:3] != (header.rows, header.columns, 1)
        or size.process != process
        or not 1 <= size.precision <= header.bits_allocated
    ):
        raise RejectedFile(Reason.CONTRADICTION)
    codestream.require_end(stream)


def _plugin(stream: bytes, header: Header) -> np.ndarray:
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": "MONOCHROME2",
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    image, _ = get_decoder(header.syntax).as_array(
        encapsulate([stream]),
        index=0,
        raw=True,
        decoding_plugin=_PLUGINS[header.syntax],
        **options,
    )
    return image


def _jpeg_lossless(stream: bytes, header: Header) -> np.ndarray:
    """Decode with dicomsdl, from a fresh file that holds the checked facts only."""
    import dicomsdl  # here: few files need it

    clean = Dataset()
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = UID(header.syntax)
    clean.SOPClassUID = SecondaryCaptureImageStorage
    clean.SOPInstanceUID = "1.2.3"
    clean.SamplesPerPixel = 1
    clean.PhotometricInterpretation = "MONOCHROME2"
    clean.Rows, clean.Columns = header.rows, header.columns
    clean.BitsAllocated, clean.BitsStored = header.bits_allocated, header.bits_stored
    clean.HighBit = header.bits_stored - 1
    clean.PixelRepresentation = int(header.signed)
    clean.PixelData = encapsulate([stream])
    clean["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dcmwrite(buffer, clean, enforce_file_format=True)
    image: np.ndarray = dicomsdl.open_memory(buffer.getvalue()).pixelData(storedvalue=True)
    return image


def decode_jpeg_file(data: bytes) -> np.ndarray:
    """Read an 8-bit JPEG, as mirrors distribute them; in one of three colours all must be grey."""
    size = codestream.jpeg_size(data)
    if not (MIN_SIDE <= size.rows <= MAX_SIDE and MIN_SIDE <= size.columns <= MAX_SIDE):
        raise RejectedFile(Reason.IMAGE_SIZE)
    codestream.require_end(data)
    if size.samples not in (1, 3):
        raise RejectedFile(Reason.MANY_SAMPLES)
    mode = cv2.IMREAD_GRAYSCALE if size.samples == 1 else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape[:2] != (size.rows, size.columns):
        raise RejectedFile(Reason.UNDECODABLE)
    if image.ndim == 3:
        if (image != image[..., :1]).any():
            raise RejectedFile(Reason.MANY_SAMPLES)
        image = image[..., 0]
    return image.astype(np.uint16) * 257
