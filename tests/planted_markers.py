"""Markers in every header field and unused table column of a release, and how to find them again.

They stand for what identifies a patient. Wherever one turns up outside the release, something
leaked.
"""

import csv
import re
import warnings
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_dict

MARKER = "XMARKERX"
UID_MARKER = "1.2.987654321"
_VALUES = {
    "DA": "19870617",
    "TM": "098765",
    "AS": "098Y",
    "IS": "987654",
    "DS": "987654.25",
    **dict.fromkeys(("PN", "LO", "SH", "LT", "ST", "UT", "CS", "AE", "UC"), MARKER),
}
_GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x0032, 0x0040, 0x4008)
_TECHNICAL = {
    "PhotometricInterpretation", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept",
    "VOILUTFunction", "NumberOfFrames", "SpecificCharacterSet",
}  # fmt: skip
# What the readers use; markers go into all other columns of a release that can be read.
USED = re.compile(
    r"patient.id|density|left or right|image view|pathology|path|study.id|image.id|laterality|"
    r"view|height|width|birads|bi-rads|acr|split|categories|[xy](min|max)|sop instance|rows|"
    r"columns|file name|acquisition date",
    re.IGNORECASE,
)
# Identifiers of CBIS-DDSM and VinDr-Mammo, and the markers.
LEAK = re.compile(
    rf"{MARKER}|{UID_MARKER}|987654|098765|19870617|\bP_\d{{5}}|1\.3\.6\.1\.4\.1\.9590|"
    r"\b[0-9a-f]{32}\b"
)


def planted_header() -> Dataset:
    """A marker in every text, date and number field that a header may have."""
    header = Dataset()
    for keyword, tag in keyword_dict.items():
        value = _VALUES.get(dictionary_VR(tag))
        if value and tag >> 16 in _GROUPS and keyword not in _TECHNICAL:
            setattr(header, keyword, value)
    header.FrameOfReferenceUID = UID_MARKER
    header.private_block(0x0011, MARKER, create=True).add_new(1, "LO", MARKER)
    return header


def plant_in_headers(paths: list[Path]) -> None:
    """Put markers into the headers of DICOM files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = planted_header()
        for path in paths:
            dataset = dcmread(path)
            dataset.update(header)
            dataset.save_as(path)


def plant_in_table(path: Path, column: int, row: int | None = None, delimiter: str = ",") -> None:
    """Put a marker into a column: into one row, or into all of them."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
    for number, cells in enumerate(rows):
        if row is None or number == row:
            cells[column] = MARKER
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def columns_of(path: Path, delimiter: str = ",") -> list[str]:
    """The header of a table."""
    with path.open(newline="") as file:
        return next(csv.reader(file, delimiter=delimiter))


def plant_in_unused_columns(path: Path, delimiter: str = ",") -> int:
    """Put markers into every column that no reader uses; returns how many."""
    unused = [k for k, name in enumerate(columns_of(path, delimiter)) if not USED.search(name)]
    for column in unused:
        plant_in_table(path, column, delimiter=delimiter)
    return len(unused)
