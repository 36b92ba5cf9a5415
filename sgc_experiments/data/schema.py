"""The image table: the one shape in which every dataset enters the package.

A reader turns a release on disk into a table with one row per image and hands it through
`check_table`, the only door. Behind the door nobody asks again whether a label is binary or a
patient is known.

Identifiers are pseudonyms: `hashed` is a SHA-256 under a fixed salt per dataset, so the same image
carries the same name on every machine. That is pseudonymisation, not anonymity: whoever holds the
release and this source code can compute the hashes and link them back.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from sgc_experiments.data import CLASSES
from sgc_experiments.errors import UserError

COLUMNS = (
    "image_id",  # "img-" + 12 hex digits, unique
    "patient",  # "pat-" + 12 hex digits
    "exam",  # "exam-" + 12 hex digits
    "laterality",  # "L" or "R", "" if unknown
    "view",  # "CC" or "MLO", "" if unknown
    "label",  # index of the class: 0 benign, 1 malignant, unless the table names others
    "assessment",  # BI-RADS or pathology as released, "" if missing
    "density",  # "1" (fatty) to "4" (extremely dense), "" if missing
    "official_split",  # "train", "validation", "test", or "" where the release has none
    "path",  # absolute path of the file; never logged
    "lesions",  # boxes (x0, y0, x1, y1) in pixels of the stored image, the most relevant first
)

_ROWS_SHOWN = 20
_QUARANTINE, _UNBOXED, _CLASSES = "quarantine", "unboxed", "classes"


def hashed(kind: str, *parts: str, salt: str) -> str:
    """Return the pseudonym of something, such as "img-3fa9c1d2e4b5".

    Args:
        kind: "img", "pat" or "exam"; different kinds never collide.
        *parts: what identifies the thing within its dataset.
        salt: the dataset's name, so that equal numbers in two datasets stay apart.
    """
    message = json.dumps([salt, kind, *parts], ensure_ascii=True).encode()
    return f"{kind}-{hashlib.sha256(message).hexdigest()[:12]}"


def set_quarantine(table: pd.DataFrame, reasons: Mapping[str, str]) -> pd.DataFrame:
    """Return the table with a note of the images that its reader left out.

    Args:
        table: an image table.
        reasons: why each image was left out, by `image_id`; the reasons come from a small fixed
            vocabulary of the reader and hold no values from the release.
    """
    table = table.copy(deep=False)
    table.attrs[_QUARANTINE] = dict(reasons)
    return table


def get_quarantine(table: pd.DataFrame) -> dict[str, str]:
    """Return why the reader left images out, by `image_id`; empty if it left none out."""
    return dict(table.attrs.get(_QUARANTINE, {}))


def set_unboxed(table: pd.DataFrame, reasons: Mapping[str, str]) -> pd.DataFrame:
    """Return the table with a note of why images have no lesion box, where their reader knows.

    Args:
        table: an image table, which these images stay in.
        reasons: by `image_id`, from the vocabulary of `set_quarantine`.
    """
    table = table.copy(deep=False)
    table.attrs[_UNBOXED] = dict(reasons)
    return table


def get_unboxed(table: pd.DataFrame) -> dict[str, str]:
    """Return why images have no lesion box, by `image_id`, where their reader knows."""
    return dict(table.attrs.get(_UNBOXED, {}))


def set_classes(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the table with the names of its labels, where they are not those of `CLASSES`."""
    table = table.copy(deep=False)
    table.attrs[_CLASSES] = tuple(classes)
    return table


def get_classes(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the names of the labels 0, 1, …."""
    return tuple(table.attrs.get(_CLASSES, CLASSES))


def check_table(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Validate an image table at the door.

    Args:
        table: what a reader made of a release. Quarantine notes and names of classes are kept.
        source: what the table describes, for the message ("the INbreast release").

    Returns:
        The table with exactly `COLUMNS`, sorted by `image_id`, with a fresh index.

    Raises:
        UserError: listing every violated rule with the number of rows and the first of them
            (counted from 1). Values are never quoted, because a shifted column may hold anything.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    extra = len(set(table.columns) - set(COLUMNS))
    if missing or extra:
        raise UserError(
            f"The image table of {source} does not have the expected columns:"
            f" missing {', '.join(missing) or 'none'}, {extra} unknown."
        )
    violations = [f"{rule} ({_rows(rows)})" for rule, rows in _violations(table) if rows]
    if violations:
        raise UserError(
            f"The image table of {source} breaks {len(violations)} rule(s): "
            + "; ".join(violations)
            + "."
        )
    table = table.loc[:, list(COLUMNS)].astype({"label": "int64"})
    return table.sort_values("image_id", kind="stable").reset_index(drop=True)


def _violations(table: pd.DataFrame) -> Iterable[tuple[str, list[int]]]:
    """Yield (rule, offending rows counted from 1) for every rule."""
    classes = get_classes(table)
    named = "0 (benign) or 1 (malignant)" if classes == CLASSES else f"0 to {len(classes) - 1}"
    label_rule = (named, lambda value: value in range(len(classes)))
    for column, (rule, holds) in (_RULES | {"label": label_rule}).items():
        good = [bool(holds(value)) for value in table[column]]
        yield f"{column} must be {rule}", _positions(not ok for ok in good)
    yield "image_id must be unique", _positions(table["image_id"].duplicated(keep=False))
    yield "no file may serve two images", _positions(table["path"].duplicated(keep=False))
    # A patient on both sides of the official split would be tested on what was trained on.
    official = table["official_split"].where(table["official_split"] != "")
    sides = official.groupby(table["patient"]).transform("nunique")
    yield "no patient may be in two official splits", _positions(official.notna() & (sides > 1))
    patients = table.groupby("exam")["patient"].transform("nunique")
    yield "an exam must belong to one patient", _positions(patients > 1)


def _positions(flags: Iterable[bool]) -> list[int]:
    return [number for number, flag in enumerate(flags, start=1) if flag]


def _rows(rows: list[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_ROWS_SHOWN])
    more = ", …" if len(rows) > _ROWS_SHOWN else ""
    return f"{len(rows)} row(s): {shown}{more}"


def _matches(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_box(box: object) -> bool:
    return (
        isinstance(box, tuple)
        and len(box) == 4
        and all(isinstance(edge, float) and math.isfinite(edge) for edge in box)
        and 0 <= box[0] < box[2]
        and 0 <= box[1] < box[3]
    )


_RULES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "image_id": ("a salted hash", _matches("img-[0-9a-f]{12}")),
    "patient": ("a salted hash", _matches("pat-[0-9a-f]{12}")),
    "exam": ("a salted hash", _matches("exam-[0-9a-f]{12}")),
    "laterality": ("L, R or empty", _matches("(L|R)?")),
    "view": ("CC, MLO or empty", _matches("(CC|MLO)?")),
    "assessment": ("a short text", _matches("[ -~]{0,40}")),
    "density": ("1 to 4 or empty", _matches("[1-4]?")),
    "official_split": ("train, validation, test or empty", _matches("(train|validation|test)?")),
    "path": (
        "an absolute path",
        lambda value: isinstance(value, str) and os.path.isabs(value),
    ),
    "lesions": (
        "a tuple of boxes (x0, y0, x1, y1), floats with 0 ≤ x0 < x1 and 0 ≤ y0 < y1",
        lambda value: isinstance(value, tuple) and all(_is_box(box) for box in value),
    ),
}
