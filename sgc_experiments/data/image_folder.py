"""A folder of images without a table, and boxes for them."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from sgc_experiments.data.preprocess import Box
from sgc_experiments.data.problems import Problems, read_csv_text, row_numbers
from sgc_experiments.errors import UserError

SUFFIXES = (".dcm", ".dicom", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npy", "")
# Clipped to the image, this is the whole of it.
FULL_BOX: Box = (0.0, 0.0, 1e9, 1e9)
_COLUMNS = ("path", "x0", "y0", "x1", "y1")


def find_images(root: Path) -> list[str]:
    """List the image files of a folder at any depth, told by their suffix or the lack of one.

    Hidden files and folders and links that lead out of the folder are left out.

    Returns:
        Paths relative to the folder, sorted.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not root.is_dir():
        raise UserError(f"images={root} is not a folder; give the folder of the images.")
    base = os.path.realpath(root)
    names = []
    for directory, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            path = os.path.join(directory, name)
            inside = os.path.realpath(path).startswith(base.rstrip(os.sep) + os.sep)
            if name.startswith(".") or not inside:
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                names.append(os.path.relpath(path, root))
    if not names:
        raise UserError(
            f"images={root} holds no image; DICOM (.dcm, or no suffix), JPEG, PNG, TIFF and NPY "
            "files are read."
        )
    return sorted(names)


def read_boxes(path: Path) -> dict[str, Box]:
    """Read a table of lesion boxes, one for each image.

    Args:
        path: a CSV file with the columns path (relative to the folder of the images) and x0, y0,
            x1, y1 in pixels.

    Raises:
        UserError: no such file, or rows that are no boxes; all of them listed.
    """
    if not path.is_file():
        raise UserError(f"boxes={path} is no file; give a CSV table, or boxes=full.")
    rows = read_csv_text(path)
    problems = Problems("box")
    if absent := [name for name in _COLUMNS if name not in rows.columns]:
        problems.add(f"{path.name}: no column {', '.join(absent)}")
    problems.raise_if_any()
    corners = rows[list(_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce").astype(float)
    finite = corners.abs().lt(float("inf")).all(axis=1)
    x0, y0, x1, y1 = (corners[name] for name in _COLUMNS[1:])
    good = finite & (x0 >= 0) & (y0 >= 0) & (x1 > x0) & (y1 > y0)
    names = rows["path"].map(lambda name: os.path.normpath(name.replace("\\", "/")))
    for what, wrong in (
        ("the box is not 0 ≤ x0 < x1 and 0 ≤ y0 < y1", ~good),
        ("path occurs twice", names.duplicated(keep=False)),
    ):
        problems.add_rows(path.name, what, row_numbers(wrong))
    problems.raise_if_any()
    return dict(zip(names, corners.itertuples(index=False, name=None), strict=True))
