"""Real DICOM files for the tests: written with pydicom, small, and broken on request."""

import io
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

COMPRESSED = {
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
    "j2k": JPEG2000Lossless,
    "jpegll": JPEGLosslessSV1,
}
SYNTAXES = ("native", *COMPRESSED)


def breast(height: int = 96, width: int = 64, *, seed: int = 0, level: int = 3000) -> np.ndarray:
    """(H, W) uint16 of 12 bits: a textured half disc at the left edge, surrounded by air at 0."""
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (0.42 * height)) ** 2 + (x / (0.8 * width)) ** 2 < 1
    texture = np.random.default_rng(seed).normal(0, 0.1 * level, (height, width))
    return np.where(inside, np.clip(level + texture, 500, 4095), 0).astype(np.uint16)


def dicom_bytes(pixels: np.ndarray, syntax: str = "native", **attributes: Any) -> bytes:
    """Encode pixels (H, W) uint8/uint16/int16; attributes are set last, None removes."""
    data = Dataset()
    data.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    data.SOPInstanceUID = "1.2.3.4.5"
    data.Modality = "MG"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == "jpegll":
        data.PixelData = encapsulate([jpeg_lossless(pixels)])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    elif syntax != "native":
        data.compress(COMPRESSED[syntax], generate_instance_uid=False)
    for keyword, value in attributes.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    buffer = io.BytesIO()
    dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def with_syntax(data: bytes, uid: str) -> bytes:
    """Replace the transfer syntax of a file written by `dicom_bytes`; the length may not change."""
    start = data.index(b"1.2.840.10008.1.2")
    stop = data.index(b"\x02\x00\x12\x00", start)
    assert len(uid) <= stop - start
    return data[:start] + uid.encode().ljust(stop - start, b"\0") + data[stop:]


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    """Encode (H, W) as JPEG lossless (ITU-T T.81 annex H): predictor 1, a flat Huffman table."""
    bits = 8 * pixels.itemsize
    height, width = pixels.shape
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    code = []
    for difference in (values - predicted).ravel():
        wrapped = (int(difference) + (1 << 15)) % (1 << 16) - (1 << 15)
        size = abs(wrapped).bit_length()
        code.append(f"{size:05b}")
        if 0 < size < 16:
            code.append(f"{wrapped if wrapped > 0 else wrapped + (1 << size) - 1:0{size}b}")
    stream = "".join(code)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    counts = [0] * 16
    counts[4] = 17  # categories 0 to 16, five bits each
    table = bytes([0, *counts, *range(17)])
    return b"".join(
        [
            b"\xff\xd8",
            b"\xff\xc3\x00\x0b" + bytes([bits]) + height.to_bytes(2, "big"),
            width.to_bytes(2, "big") + b"\x01\x01\x11\x00",
            b"\xff\xc4" + (len(table) + 2).to_bytes(2, "big") + table,
            b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00",
            scan,
            b"\xff\xd9",
        ]
    )
