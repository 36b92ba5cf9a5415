"""What a request to the served model holds, checked before anything is decoded.

A request is one of two things: prepared images as numbers, (N, S, S) in [0, 1], or files as they
are, in base64: DICOM, JPEG, PNG, TIFF or NPY, with a lesion box each where the model judges lesion
crops. Every complaint is one sentence that quotes nothing of the request.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sgc_experiments.data.boxes import CORNERS, RULE, Box, is_box
from sgc_experiments.data.dicom import MAX_FILE_BYTES
from sgc_experiments.errors import UserError

MOST_FILES = 16
MOST_ARRAYS = 1024
_MOST_BASE64 = 4 * (MAX_FILE_BYTES // 3 + 1)


class File(NamedTuple):
    """A file of a request, and the lesion box in its pixels, if one was given."""

    data: bytes
    box: Box | None


def read_files(model_input: Any) -> list[File] | None:
    """Return the files of a request, or None if it holds none but numbers.

    Args:
        model_input: what MLflow made of the request, or a table, list or array given in Python.

    Raises:
        UserError: the request holds files, but not as it should.
    """
    table = _as_table(model_input)
    if table is None:
        return None
    known = {"image", *CORNERS}
    if "image" not in table.columns or set(table.columns) - known:
        raise UserError(
            "A table of files has a column image (base64 of a DICOM, JPEG, PNG, TIFF or NPY file) "
            "and may have x0, y0, x1, y1 (the lesion box in pixels), and no other."
        )
    if not 1 <= len(table) <= MOST_FILES:
        raise UserError(f"A request holds 1 to {MOST_FILES} files, not {len(table)}.")
    rows = table.to_dict("records")
    return [File(_decoded(row["image"], n), _box(row, n)) for n, row in enumerate(rows, start=1)]


def read_arrays(model_input: Any, size: int) -> np.ndarray:
    """Return prepared images as uint16 (N, S, S).

    Args:
        model_input: an array-like of shape (N, S, S) with values from 0 to 1.
        size: S.

    Raises:
        UserError: it is no such array.
    """
    try:
        images = np.asarray(model_input, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"The model takes files in a column image, or numbers of shape (N, {size}, {size})."
        ) from None
    if images.ndim != 3 or images.shape[1:] != (size, size) or not len(images):
        raise UserError(
            f"The model takes images of shape (N, {size}, {size}), prepared as in training, "
            f"and got {images.shape}."
        )
    if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise UserError("The model takes images with values from 0 (background) to 1.")
    return np.rint(images * 65535).astype(np.uint16)


def _as_table(model_input: Any) -> pd.DataFrame | None:
    """The request as a table of files, whichever of MLflow's formats it came in."""
    if isinstance(model_input, pd.DataFrame):
        return model_input
    if isinstance(model_input, Mapping) or _all_of(model_input, Mapping):
        rows = model_input if isinstance(model_input, list) else None
        try:
            # MLflow wraps each value of a list of records in an array without dimensions.
            return pd.DataFrame([_unwrapped(row) for row in rows] if rows else model_input)
        except (TypeError, ValueError):
            raise UserError("The columns of the request do not have the same length.") from None
    if isinstance(model_input, str | bytes):
        return pd.DataFrame({"image": [model_input]})
    strings = isinstance(model_input, np.ndarray) and model_input.dtype.kind in "US"
    if _all_of(model_input, (str, bytes)) or (strings and model_input.ndim <= 1):
        return pd.DataFrame({"image": list(np.atleast_1d(model_input))})
    return None


def _unwrapped(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        for name, value in row.items()
    }


def _all_of(model_input: Any, kind: type | tuple[type, ...]) -> bool:
    return (
        isinstance(model_input, list)
        and bool(model_input)
        and all(isinstance(item, kind) for item in model_input)
    )


def _decoded(content: Any, number: int) -> bytes:
    """The bytes of a file; in Python they may be given as they are."""
    if isinstance(content, bytes):
        data = content
    elif isinstance(content, str):
        if len(content) > _MOST_BASE64:
            raise UserError(f"Image {number} is larger than {MAX_FILE_BYTES >> 20} MiB.")
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise UserError(
                f"Image {number} is not base64; encode the bytes of the file without line breaks."
            ) from None
    else:
        raise UserError(f"Image {number} is no text; give the bytes of the file in base64.")
    if not data:
        raise UserError(f"Image {number} is empty.")
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"Image {number} is larger than {MAX_FILE_BYTES >> 20} MiB.")
    return data


def _box(row: Mapping[str, Any], number: int) -> Box | None:
    corners: list[Any] = [row.get(name) for name in CORNERS]
    absent = [corner is None or corner != corner for corner in corners]
    if all(absent):
        return None
    numeric = all(
        isinstance(corner, int | float | np.number) and not isinstance(corner, bool)
        for corner in corners
    )
    if any(absent) or not numeric or not all(math.isfinite(corner) for corner in corners):
        raise UserError(f"Image {number} needs all of x0, y0, x1, y1 as numbers, or none.")
    x0, y0, x1, y1 = (float(corner) for corner in corners)
    if not is_box(x0, y0, x1, y1):
        raise UserError(f"The box of image {number} is not {RULE}.")
    return x0, y0, x1, y1
