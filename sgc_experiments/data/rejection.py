"""Why a file was left out: a small fixed vocabulary, so that reports never quote a file."""

from enum import StrEnum


class Reason(StrEnum):
    """The reasons for quarantine. None of them holds a value from the file or its name."""

    UNREADABLE = "the file cannot be read"
    FILE_TOO_LARGE = "the file is larger than any mammogram"
    NOT_AN_IMAGE = "neither a DICOM, JPEG, PNG, TIFF nor NPY file"
    BAD_HEADER = "the header is broken or incomplete"
    TRANSFER_SYNTAX = "the transfer syntax is not allowed"
    SOP_CLASS = "the SOP class is not a mammogram's"
    NO_PIXELS = "no pixel data"
    IMAGE_SIZE = "the image is too large or too small"
    MANY_FRAMES = "more than one frame"
    MANY_SAMPLES = "more than one sample per pixel"
    PIXEL_TYPE = "the pixels are neither grey values of 8 or 16 bits nor floats"
    NOT_FINITE = "not every pixel is a finite number"
    WHITE_IS_ZERO = "the TIFF counts white as zero"
    CONTRADICTION = "the pixel data contradicts the header"
    TRUNCATED = "the pixel data is truncated"
    UNDECODABLE = "the pixel data cannot be decoded"
    BLANK = "the image is blank"
    NO_BREAST = "no breast found in the image"
    LESION_OUTSIDE = "the lesion lies outside the image"
    NO_LESION = "no lesion annotated"
    OTHER_LESION = "the lesion behind the label is not among the chosen abnormalities"
    LEAK = "the patient is in both official subsets, left out as on_leak says"
    BAD_ANNOTATION = "the annotation cannot be read"
    SHARED_FILE = "the same file, byte for byte, under another patient"
    EXCLUDED_GRADE = "BI-RADS 3, left out on request"
    TIMEOUT = "decoding took too long"
    MEMORY = "decoding needed too much memory"
    UNEXPECTED = "an unexpected error"
    CRASH = "the decoder died"


PASSING = frozenset({Reason.UNREADABLE, Reason.TIMEOUT, Reason.MEMORY, Reason.CRASH})
"""Reasons that may be this machine's and this hour's, not the file's: never to be remembered."""


class RejectedFile(Exception):  # noqa: N818 (a verdict about a file, not a fault of the program)
    """A file that must not be used.

    Attributes:
        reason: why.
        place: type and source line of an unexpected error, else "".
    """

    def __init__(self, reason: Reason, place: str = "") -> None:
        super().__init__(reason, place)
        self.reason = reason
        self.place = place

    def __str__(self) -> str:
        return str(self.reason)
