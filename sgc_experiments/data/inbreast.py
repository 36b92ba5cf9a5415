"""INbreast (Moreira et al., Academic Radiology 2012) → the image table.

A release is a table (`INbreast.csv` or `INbreast.xls`), `AllDICOMs/` and `AllXML/`; mirrors put all
files into one folder. Facts about it that the code rests on:

- The patient is known by the second token of a file name only. Headers and table hold none.
- `ML` in a file name is `MLO` in the table, and one image is `FB`, "from below": a craniocaudal
  projection taken the other way round, counted as CC.
- File names read as floats from the XLS; rows without one at its end are footers. Circulating
  copies carry a second sheet with what look like personal data, so only the first is opened, and
  only whitelisted columns are read.
- BI-RADS 1 to 3 count as benign, 4a to 6 as malignant: an opinion for most, pathology for some.
- Annotations are OsiriX property lists. Regions of one or two points are dots, and some points lie
  outside the image.
"""

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import xlrd

from sgc_experiments.data.osirix import read_regions
from sgc_experiments.data.problems import Problems
from sgc_experiments.data.rejection import Reason, RejectedFile
from sgc_experiments.data.schema import COLUMNS, check_table, hashed, set_quarantine
from sgc_experiments.errors import UserError

log = logging.getLogger("sgc_experiments.data")

Birads3 = Literal["benign", "drop"]

_FOLDERS = ("", "INbreast Release 1.0", "inbreast")
_TABLES = ("inbreast.csv", "inbreast.xls")
_COLUMNS = ("Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads")
_FILE = re.compile(r"(\d+)_([^_]+)_MG_([LR])_(CC|MLO|ML|FB)(_ANON)?\.(dcm|dicom)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)(\.0*)?")
_VIEWS = {"CC": "CC", "FB": "CC", "ML": "MLO", "MLO": "MLO"}
_GRADE = re.compile(r"[1-6]|4[abc]")
_SALT = "inbreast"


@dataclass(frozen=True)
class _Row:
    """One row of the released table, as stripped text; `number` as a spreadsheet shows it."""

    number: int
    laterality: str
    view: str
    date: str
    file: str
    density: str
    grade: str


@dataclass(frozen=True)
class _Image:
    """What a file name says."""

    path: Path
    patient: str
    laterality: str
    view: str


def read_table(data_dir: Path, *, birads3: Birads3 = "benign") -> pd.DataFrame:
    """Read an INbreast release as an image table.

    Args:
        data_dir: the release, or the folder that holds `INbreast Release 1.0` or `inbreast`.
        birads3: whether BI-RADS 3 counts as benign or is dropped.

    Returns:
        A checked table. Dropped images and those whose annotation cannot be read are in its
        quarantine. Lesion boxes are the regions' bounding boxes, the largest first; the far edges
        may lie outside the image, whose size only the image knows.

    Raises:
        UserError: no release there, or its table contradicts its files; all contradictions are
            listed, by row number.
    """
    if birads3 not in get_args(Birads3):
        raise UserError(f"birads3 must be one of {', '.join(get_args(Birads3))}.")
    table, images, annotations = _find_release(data_dir)
    rows = _read_xls(table) if table.suffix.lower() == ".xls" else _read_csv(table)
    by_number = _check_release(table.name, rows, images)

    records, quarantine = [], {}
    for row in rows:
        image = by_number[row.file]
        image_id = hashed("img", row.file, salt=_SALT)
        if row.grade == "3" and birads3 == "drop":
            quarantine[image_id] = Reason.EXCLUDED_GRADE
            continue
        try:
            annotation = annotations.get(row.file)
            lesions = read_regions(annotation) if annotation else ()
        except RejectedFile as rejection:
            quarantine[image_id] = rejection.reason
            continue
        records.append(
            {
                "image_id": image_id,
                "patient": hashed("pat", image.patient, salt=_SALT),
                "exam": hashed("exam", image.patient, row.date, salt=_SALT),
                "laterality": row.laterality,
                "view": _VIEWS[row.view],
                "label": int(row.grade[0] >= "4"),
                "assessment": row.grade,
                "density": row.density,
                "official_split": "",
                "path": str(image.path),
                "lesions": lesions,
            }
        )
    checked = check_table(pd.DataFrame(records, columns=list(COLUMNS)), "the INbreast release")
    return set_quarantine(checked, quarantine)


def _find_release(data_dir: Path) -> tuple[Path, list[Path], dict[str, Path]]:
    """Return the table, the image files, and the annotation files by image number."""
    for name in _FOLDERS:
        root = data_dir / name
        here = _entries(root)
        table = next((here[name] for name in _TABLES if name in here), None)
        files = [*_entries(here.get("alldicoms", root)).values()]
        images = [file for file in files if file.suffix.lower() in (".dcm", ".dicom")]
        if table and images:
            around = _entries(here.get("allxml", root)).values()
            annotations = {file.stem: file for file in around if file.suffix.lower() == ".xml"}
            if not annotations:
                log.warning("INbreast: no annotation found (AllXML/*.xml); no image has a lesion")
            return table, sorted(images), annotations
    raise UserError(
        f"No INbreast release found: looked for INbreast.csv or INbreast.xls beside the folders"
        f" AllDICOMs and AllXML in {data_dir}, its 'INbreast Release 1.0' and its 'inbreast';"
        " request INbreast from its authors (Breast Research Group, INESC Porto) and point data_dir"
        " to it, or use dataset=phantom, which needs nothing."
    )


def _entries(folder: Path) -> dict[str, Path]:
    """Return what lies in a folder by lower-case name, without hidden files; {} if not a folder."""
    try:
        return {
            entry.name.lower(): Path(os.path.abspath(entry.path))
            for entry in os.scandir(folder)
            if not entry.name.startswith(".")
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError:
        raise UserError(f"The folder {folder} cannot be read; check its permissions.") from None


def _read_csv(path: Path) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        separator = ";" if ";" in text.partition("\n")[0] else ","
        cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, csv.Error):
        raise UserError(f"{path.name} cannot be read as a table; copy the release again.") from None
    return list(_rows(path.name, cells))


def _read_xls(path: Path) -> list[_Row]:
    try:
        with open(os.devnull, "w") as nowhere:  # xlrd prints what it stumbles over
            book = xlrd.open_workbook(path, logfile=nowhere, on_demand=True)
            sheet = book.sheet_by_index(0)
            cells = [
                [_text(value) for value in sheet.row_values(row)] for row in range(sheet.nrows)
            ]
    # A broken workbook can raise nearly anything, and messages quote cells.
    except Exception:
        raise UserError(f"{path.name} cannot be read as a table; copy the release again.") from None
    return list(_rows(path.name, cells))


def _text(cell: object) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _rows(table: str, cells: list[list[str]]) -> Iterator[_Row]:
    """Yield the rows of a table's cells: whitelisted columns, without footers."""
    header = [name.strip().casefold() for name in cells[0]] if cells else []
    missing = [name for name in _COLUMNS if name.casefold() not in header]
    if missing:
        raise UserError(f"{table} has no column {', '.join(missing)}; copy the release again.")
    side, view, date, file, density, grade = (header.index(name.casefold()) for name in _COLUMNS)
    last = max((n for n, row in enumerate(cells) if _NUMBER.fullmatch(_cell(row, file))), default=0)
    for number, row in enumerate(cells[1 : last + 1], start=2):
        name = _NUMBER.fullmatch(_cell(row, file))
        yield _Row(
            number=number,
            laterality=_cell(row, side).upper(),
            view=_cell(row, view).upper(),
            date=_cell(row, date),
            file=name[1] if name else "",
            density=_cell(row, density),
            grade=_cell(row, grade).lower(),
        )


def _cell(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _check_release(table: str, rows: list[_Row], paths: list[Path]) -> dict[str, _Image]:
    """Compare table and files; return the images by number.

    Raises:
        UserError: listing every contradiction.
    """
    images: dict[str, list[_Image]] = {}
    foreign = 0
    for path in paths:
        name = _FILE.fullmatch(path.name)
        if name is None:
            foreign += 1
            continue
        number, patient, side, view = name.group(1, 2, 3, 4)
        image = _Image(path, patient.lower(), side.upper(), _VIEWS[view.upper()])
        images.setdefault(number, []).append(image)

    numbers = Counter(row.file for row in rows)
    wrong: dict[str, list[int]] = {
        "no valid file name": [row.number for row in rows if not row.file],
        "the file name occurs twice": [
            row.number for row in rows if row.file and numbers[row.file] > 1
        ],
        "no such image file": [row.number for row in rows if row.file and row.file not in images],
        "several image files": [row.number for row in rows if len(images.get(row.file, ())) > 1],
        "Laterality is not L or R": [row.number for row in rows if row.laterality not in "LR"],
        "View is not CC, MLO or FB": [row.number for row in rows if row.view not in _VIEWS],
        "ACR is not 1 to 4 or blank": [
            row.number for row in rows if not re.fullmatch("[1-4]?", row.density)
        ],
        "Bi-Rads is not 1 to 6 or 4a to 4c": [
            row.number for row in rows if not _GRADE.fullmatch(row.grade)
        ],
        "side or view is not the file name's": [
            row.number for row in rows if any(not _agree(row, i) for i in images.get(row.file, ()))
        ],
    }
    problems = Problems("INbreast")
    for what, where in wrong.items():
        problems.add_rows(table, what, where)
    unknown = len(set(images) - set(numbers))
    if unknown:
        problems.add(f"{unknown} image file(s) without a row in {table}")
    if foreign:
        problems.add(f"{foreign} image file(s) whose name is not an INbreast name")
    problems.raise_if_any()
    return {number: found[0] for number, found in images.items()}


def _agree(row: _Row, image: _Image) -> bool:
    """Say whether row and file name tell the same side and view; FB files are named variously."""
    same_view = row.view == "FB" or _VIEWS.get(row.view) == image.view
    return row.laterality == image.laterality and same_view
