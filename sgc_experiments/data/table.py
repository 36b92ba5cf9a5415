"""A table of the user's own images (CSV) -> the image table.

Required columns: `path`, `patient`, `label`. Optional: `image_id`, `exam`, `laterality`, `view`,
`density`, `birads`, `split` and a lesion box `x0`, `y0`, `x1`, `y1` in pixels of the stored image.
Other columns are not used.

- Paths are relative to the folder of the table, or absolute; links are followed, and what they lead
  to must lie in that folder or below it.
- Labels are names or numbers, of two or more classes. The order of the classes decides which is the
  positive one (the second of two); numbers are ordered by size and names by the alphabet, unless
  `classes` gives the order.
- Patients, examinations and images get salted hashes like those of every other dataset. Two tables
  that number their patients alike therefore share pseudonyms: name the site in the number.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sgc_experiments.data.boxes import CORNERS, RULE, Box, is_box
from sgc_experiments.data.problems import Problems, read_csv_text, row_numbers
from sgc_experiments.data.schema import COLUMNS, check_table, hashed, set_classes
from sgc_experiments.errors import UserError

log = logging.getLogger("sgc_experiments.data")

SALT = "table"
REQUIRED = ("path", "patient", "label")
OPTIONAL = ("image id", "exam", "laterality", "view", "density", "birads", "split", *CORNERS)
MOST_CLASSES = 50
LATERALITIES = {"": "", "l": "L", "left": "L", "r": "R", "right": "R"}
VIEWS = {"": "", "cc": "CC", "mlo": "MLO"}
DENSITIES = {"": ""} | dict(zip("1234abcd", "12341234", strict=True))
SPLITS = {
    "": "", "train": "train", "training": "train", "val": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip
_BIRADS = re.compile(r"([0-6][abc]?)?")
_WHOLE_NUMBER = re.compile(r"(-?\d+)(\.0+)?")
_CLASS_NAME_LENGTH = 40


def read_table(data_dir: Path, *, table: Path, classes: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of images.

    Args:
        data_dir: the folder that the images must lie in.
        table: the CSV file.
        classes: names of the labels 0, 1, … in this order; () takes those of the table.

    Returns:
        A checked table that names its classes.

    Raises:
        UserError: no such file, a column is missing, or rows that contradict the files or each
            other; all of it listed by row number.
    """
    if not table.is_file():
        raise UserError(
            f"table={table} is not a file; give a CSV table with the columns "
            f"{', '.join(REQUIRED)} and a row for each image."
        )
    rows = read_csv_text(table)
    problems = Problems("image")
    _require_columns(table.name, list(rows.columns))
    absent = [name for name in CORNERS if name not in rows.columns]
    if 0 < len(absent) < len(CORNERS):
        problems.add(f"{table.name}: a box needs {', '.join(CORNERS)}: no {', '.join(absent)}")
    if rows.empty:
        problems.add(f"{table.name}: the table is empty")
    problems.raise_if_any()
    _tell_unused(table.name, list(rows.columns))

    rows = rows.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    labels, names = _labels(rows["label"], classes, table.name, problems)
    rows["file"] = _files(rows["path"], data_dir, table.name, problems)
    boxes = _boxes(rows, table.name, problems)
    for column, values in (
        ("laterality", LATERALITIES), ("view", VIEWS), ("density", DENSITIES), ("split", SPLITS),
    ):  # fmt: skip
        rows[column] = _translated(rows[column], values, table.name, problems)
    _check_rows(rows, table.name, problems)
    problems.raise_if_any()
    found = pd.DataFrame(
        [
            _image_row(row, label, box)
            for row, label, box in zip(rows.to_dict("records"), labels, boxes, strict=True)
        ],
        columns=list(COLUMNS),
    )
    return check_table(set_classes(found, names), f"the table {table.name}")


def _require_columns(name: str, columns: list[str]) -> None:
    """Refuse a table without the columns needed.

    What is in its first row is not told: without a header, that is a patient.
    """
    absent = [column for column in REQUIRED if column not in columns]
    if not absent:
        return
    if len(columns) == 1 and ";" in columns[0]:
        raise UserError(f"{name} is separated by semicolons; save it with commas.")
    raise UserError(
        f"{name} has no column {_listed(absent)}: its first row must name the columns "
        f"{_listed(list(REQUIRED))}, and none of its {len(columns)} columns is called so; rename "
        "those that hold them."
    )


def _tell_unused(name: str, columns: list[str]) -> None:
    """Count the columns that are not used, and name what they were perhaps meant for."""
    unused = [column for column in columns if column not in (*REQUIRED, *OPTIONAL)]
    if unused:
        log.info("%s: %d column(s) are not used", name, len(unused))
    for wanted in OPTIONAL:
        if wanted not in columns and difflib.get_close_matches(wanted, unused, n=1, cutoff=0.8):
            log.warning(
                "%s: a column that is not used is written almost like %s; if it is meant, rename "
                "it", name, wanted,
            )  # fmt: skip


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _labels(
    column: pd.Series, classes: Sequence[str], name: str, problems: Problems
) -> tuple[list[int], tuple[str, ...]]:
    """Return the index of every row's class, and the names of the classes."""
    values = [_without_decimals(text) for text in column]
    present = set(values) - {""}
    numbers = all(_WHOLE_NUMBER.fullmatch(value) for value in present)
    order = list(classes) or sorted(present, key=lambda v: (int(v), v) if numbers else (0, v))
    index = {value: position for position, value in enumerate(order)}
    if classes and numbers and present.isdisjoint(order):
        index = {str(position): position for position in range(len(order))}
    problems.add_rows(name, "label is empty", row_numbers(column == ""))
    wrong = pd.Series([value not in index and value != "" for value in values], column.index)
    problems.add_rows(name, "label is none of classes=", row_numbers(wrong))
    if not classes and not 2 <= len(order) <= MOST_CLASSES:
        problems.add(
            f"{name}: label has {len(order)} different values, where 2 to {MOST_CLASSES} are "
            "possible"
        )
    if not all(value.isprintable() and len(value) <= _CLASS_NAME_LENGTH for value in order):
        problems.add(f"{name}: a label is longer than {_CLASS_NAME_LENGTH} printable characters")
    return [index.get(value, 0) for value in values], tuple(order)


def _without_decimals(text: str) -> str:
    """A spreadsheet writes the label 1 as 1.0."""
    match = _WHOLE_NUMBER.fullmatch(text)
    return match[1] if match else text


def _files(paths: pd.Series, root: Path, name: str, problems: Problems) -> list[str]:
    """Return the file of every row, links resolved; "" where there is none that may be read."""
    base = os.path.realpath(root)
    files, outside, missing = [], [], []
    for text in paths:
        # A NUL is no part of any file's name, and the system calls would raise.
        usable = text != "" and "\0" not in text
        file = os.path.realpath(os.path.join(base, text.replace("\\", "/"))) if usable else ""
        inside = file.startswith(base.rstrip(os.sep) + os.sep)
        outside.append(usable and not inside)
        missing.append(not usable or (inside and not os.path.isfile(file)))
        files.append(file if inside else "")
    found = pd.Series(files, paths.index)
    twice = found.duplicated(keep=False) & (found != "")
    for what, wrong in (
        ("path leads out of the table's folder", pd.Series(outside, paths.index)),
        ("path is no file", pd.Series(missing, paths.index)),
        ("the same file as in another row", twice),
    ):
        problems.add_rows(name, what, row_numbers(wrong))
    return files


def _boxes(rows: pd.DataFrame, name: str, problems: Problems) -> list[Box | None]:
    boxes = read_corners(rows)
    given = (rows[list(CORNERS)] != "").any(axis=1)
    missing = pd.Series([box is None for box in boxes])
    problems.add_rows(name, f"the box is not {RULE}", row_numbers(given & missing))
    return boxes


def read_corners(rows: pd.DataFrame) -> list[Box | None]:
    """The box of every row from its texts `x0`, `y0`, `x1`, `y1`; None where they make none."""
    numbers = rows[list(CORNERS)].apply(pd.to_numeric, errors="coerce").astype(float)
    return [box if is_box(*box) else None for box in numbers.itertuples(index=False, name=None)]


def _translated(
    column: pd.Series, values: Mapping[str, str], name: str, problems: Problems
) -> pd.Series:
    lowered = column.str.lower()
    allowed = ", ".join(sorted({value for value in values.values() if value}))
    wrong = ~lowered.isin(list(values))
    problems.add_rows(name, f"{column.name} is none of {allowed}, nor empty", row_numbers(wrong))
    return lowered.map(values).fillna("")


def _check_rows(rows: pd.DataFrame, name: str, problems: Problems) -> None:
    """Note the rows that contradict each other."""
    splits = rows["split"].where(rows["split"] != "")
    sides = splits.groupby(rows["patient"]).transform("nunique")
    named = rows["image id"] != ""
    for what, wrong in (
        ("patient is empty", rows["patient"] == ""),
        ("image_id occurs twice", named & rows["image id"].duplicated(keep=False)),
        ("birads is not 0 to 6 (4a, 4b, 4c)", ~rows["birads"].str.lower().map(_is_birads)),
        ("the patient is in two splits", sides > 1),
        ("split is empty, though other rows have one", splits.isna() & splits.notna().any()),
    ):
        problems.add_rows(name, what, row_numbers(wrong))


def _is_birads(text: str) -> bool:
    return _BIRADS.fullmatch(text) is not None


def _image_row(row: Mapping[str, str], label: int, box: Box | None) -> dict[str, object]:
    """One row of the image table."""
    patient = row["patient"]
    # The path as it is written, so that a table that is moved with its images keeps its pseudonyms.
    image = ("id", row["image id"]) if row["image id"] else ("path", row["path"])
    return {
        "image_id": hashed("img", *image, salt=SALT),
        "patient": hashed("pat", patient, salt=SALT),
        "exam": hashed("exam", patient, row["exam"], salt=SALT),
        "laterality": row["laterality"],
        "view": row["view"],
        "label": label,
        "assessment": row["birads"].lower(),
        "density": row["density"],
        "official_split": row["split"],
        "path": row["file"],
        "lesions": (box,) if box else (),
    }
