"""One synthetic image → one DICOM file, the same bytes for the same arguments.

Everything that DICOM libraries usually draw at random or take from the clock (instance UIDs,
creation dates) is derived from a seed or left out, so that a generated release can be compared
byte for byte.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from sgc_experiments.errors import UserError

SYNTAXES = {
    "native": ExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
    "j2k": JPEG2000Lossless,
}
"""Transfer syntaxes that can be written, all lossless."""


def check_syntax(syntax: str) -> None:
    """Raise `UserError` unless `syntax` is one of `SYNTAXES`."""
    if syntax not in SYNTAXES:
        raise UserError(
            f"syntax={syntax!r} is not a transfer syntax the phantom can write; "
            f"choose one of {', '.join(SYNTAXES)}"
        )


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    uid_seed: str,
    syntax: str = "native",
    photometric: str = "MONOCHROME2",
    bits_stored: int = 12,
    sop_class: str = DigitalMammographyXRayImageStorageForPresentation,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write `pixels` as a single-frame greyscale DICOM file at `path`.

    Args:
        path: the file to write; its folder exists.
        pixels: (H, W) uint8 or uint16 stored values, below 2**bits_stored.
        uid_seed: any text; the study, series and instance UIDs are hashes of it. An attribute of
            `attributes` (say `StudyInstanceUID`) takes precedence.
        syntax: a key of `SYNTAXES`.
        photometric: "MONOCHROME2" (0 is black) or "MONOCHROME1" (0 is white). The pixels are
            stored as given: to write a MONOCHROME1 image, invert them first.
        bits_stored: significant bits, at most the bits of the array's type.
        sop_class: SOP class UID of the data set and the file meta information.
        attributes: DICOM keyword → value, set last; a value of None removes the element.

    Raises:
        UserError: unknown `syntax`.
        ValueError: pixels of another type or shape, or out of range.
    """
    check_syntax(syntax)
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 2:
        raise ValueError(
            f"pixels must be (H, W) uint8 or uint16, got {pixels.shape} {pixels.dtype}"
        )
    if int(pixels.max()) >= 2**bits_stored:
        raise ValueError(f"pixel value {int(pixels.max())} does not fit in {bits_stored} bits")

    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid(entropy_srcs=[uid_seed, keyword]))
    dataset.Modality = "MG"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits_stored
    dataset.HighBit = bits_stored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype == np.uint8 else "OW"

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if SYNTAXES[syntax] != ExplicitVRLittleEndian:
        # pydicom gives a compressed image a new random UID unless told not to.
        dataset.compress(SYNTAXES[syntax], generate_instance_uid=False)

    for keyword, value in (attributes or {}).items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3.4")
    dataset.save_as(path, enforce_file_format=True)
