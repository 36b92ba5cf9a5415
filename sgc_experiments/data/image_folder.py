"""A folder of images without a table: what lies in it, prepared as a dataset is, and boxes."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sgc_experiments.data.boxes import CORNERS, RULE, Box
from sgc_experiments.data.cache import open_cache
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.problems import Problems, read_csv_text, row_numbers
from sgc_experiments.data.schema import hashed
from sgc_experiments.data.table import read_corners
from sgc_experiments.errors import UserError

# Exports name DICOM files in every way, by UIDs for instance, whose last part looks like a suffix:
# only what is surely something else is left, and the content decides on the rest.
NO_IMAGES = (
    *(".csv", ".tsv", ".xls", ".xlsx", ".json", ".xml", ".yaml", ".yml", ".db"),
    *(".txt", ".md", ".html", ".htm", ".pdf", ".doc", ".docx", ".log", ".py", ".ipynb"),
    *(".zip", ".gz", ".tar"),
    *(".partial", ".lock"),  # of a table of predictions that is being written there
)
# Clipped to the image, this is the whole of it.
FULL_BOX: Box = (0.0, 0.0, 1e9, 1e9)

log = logging.getLogger("sgc_experiments.data")


@dataclass(frozen=True)
class FolderImages:
    """Prepared images of a folder.

    Attributes:
        images: (N, S, S) uint16, memory-mapped.
        image_ids: pseudonyms of the files' places in the folder, N of them.
        digest: SHA-256 over the content of the files and the settings.
    """

    images: np.ndarray
    image_ids: tuple[str, ...]
    digest: str


def find_images(root: Path, parameter: str = "images") -> list[str]:
    """List the files of a folder at any depth that may be images.

    Hidden files and folders are left out; so are tables, texts and archives, by their suffix, and
    links that lead out of the folder, and these are counted.

    Args:
        root: the folder.
        parameter: that named it, for the message.

    Returns:
        Paths relative to the folder, sorted.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not root.is_dir():
        raise UserError(f"{parameter}={root} is not a folder; give the folder of the images.")
    base = os.path.realpath(root)
    names, others, outside = [], 0, 0
    for directory, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            path = os.path.join(directory, name)
            inside = os.path.realpath(path).startswith(base.rstrip(os.sep) + os.sep)
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in NO_IMAGES:
                others += 1
            elif not inside:
                outside += 1
            else:
                names.append(os.path.relpath(path, root))
    left_out = {
        "other file(s) such as tables and texts": others,
        "link(s) that lead out of it": outside,
    }
    told = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    if not names:
        raise UserError(
            f"{parameter}={root} holds no image ({told or 'it is empty'}); DICOM, JPEG, PNG, TIFF "
            "and NPY files are read."
        )
    if told:
        level = logging.WARNING if outside else logging.INFO
        log.log(level, "%s: %s are left out", parameter, told)
    return sorted(names)


def load_folder(
    folder: Path,
    settings: PreprocessSettings,
    *,
    cache_dir: Path,
    workers: int = 0,
    progress: bool = True,
) -> FolderImages:
    """Prepare every image of a folder for `unlabelled`; what is no sound image is counted and left.

    Args:
        folder: searched by `find_images`.
        settings: as for the dataset that the images go with.
        cache_dir: for the prepared images.
        workers: processes, 0 for one per core.
        progress: whether to show a bar.

    Raises:
        UserError: there is no such folder, the input is lesion crops, or no file is usable.
    """
    if settings.input == "roi":
        raise UserError(
            f"Images of the folder {folder.name} have no lesion boxes to be cut out by: use "
            "input=whole, or unlabelled=rest."
        )
    names = find_images(folder, "unlabelled")
    table = pd.DataFrame(
        {
            "image_id": [hashed("img", name, salt="folder") for name in names],
            "path": [str(folder / name) for name in names],
            "lesions": [()] * len(names),
        }
    )
    cached = open_cache(
        table, settings, root=folder, cache_dir=cache_dir, workers=workers, progress=progress
    )
    if cached.rejected:
        reasons = pd.Series(list(cached.rejected.values())).value_counts()
        told = "; ".join(f"{count} × {reason}" for reason, count in reasons.items())
        log.warning("%s: %d of %d files left out (%s)", folder.name, len(cached.rejected),
                    len(names), told)  # fmt: skip
    if not cached.sources:
        raise UserError(
            f"unlabelled={folder} holds no usable image ({len(names)} files were tried)."
        )
    digest = hashlib.sha256(repr([settings.as_dict(), sorted(cached.sources.values())]).encode())
    usable = tuple(name for name in table["image_id"] if name in cached.sources)
    return FolderImages(cached.images, usable, digest.hexdigest())


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
    if absent := [name for name in ("path", *CORNERS) if name not in rows.columns]:
        problems.add(f"{path.name}: no column {', '.join(absent)}")
    problems.raise_if_any()
    boxes = read_corners(rows)
    names = rows["path"].map(lambda name: os.path.normpath(name.replace("\\", "/")))
    for what, wrong in (
        (f"the box is not {RULE}", pd.Series([box is None for box in boxes])),
        ("path occurs twice", names.duplicated(keep=False)),
    ):
        problems.add_rows(path.name, what, row_numbers(wrong))
    problems.raise_if_any()
    return {name: box for name, box in zip(names, boxes, strict=True) if box}
