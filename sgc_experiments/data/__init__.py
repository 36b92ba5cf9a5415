"""Datasets: the only part of the package that knows file formats.

`load_dataset` leads from a release on disk to checked, decoded, prepared images. On the way it is
read (`inbreast`, `cbis_ddsm`, `vindr_mammo`, `table`) into an image table (`schema`), every file is
decoded in a process that may die (`decode_pool`, `dicom`), prepared (`preprocess`) and cached
(`cache`).
Nothing is dropped silently: whatever is left out stands in the quarantine with its reason.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sgc_experiments.errors import UserError

# Workers import this package for every decode process, and the command line for its --help:
# pandas, pydicom and OpenCV are imported when a dataset is loaded.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_log = logging.getLogger(__name__)

CLASSES = ("benign", "malignant")
"""Names of the labels 0 and 1."""


@dataclass(frozen=True)
class ImageDataset:
    """Images ready for a model, and where they come from.

    Attributes:
        name: of the dataset.
        table: the image table, usable images only; row i belongs to `images[i]`.
        images: (N, S, S) uint16, as a rule memory-mapped; 0 is background, 65535 full brightness.
        boxes: (N, 4) float32, the lesion box in pixels of `images`; NaN where there is none.
        classes: names of the labels.
        quarantine: columns image_id, reason: every image that was left out, and why.
        digest: SHA-256 over the content of the source files, the table and the settings.
        preprocessing: the resolved settings, JSON-able.
    """

    name: str
    table: pd.DataFrame
    images: np.ndarray
    boxes: np.ndarray
    classes: tuple[str, ...]
    quarantine: pd.DataFrame
    digest: str
    preprocessing: dict[str, Any]


def _reader(module: str) -> Callable[..., pd.DataFrame]:
    def read_table(data_dir: Path, **options: Any) -> pd.DataFrame:
        return importlib.import_module(f"sgc_experiments.data.{module}").read_table(
            data_dir, **options
        )

    return read_table


READERS: dict[str, Callable[..., pd.DataFrame]] = {
    "phantom": _reader("inbreast"),  # generated as an INbreast release
    "inbreast": _reader("inbreast"),
    "cbis_ddsm": _reader("cbis_ddsm"),
    "vindr_mammo": _reader("vindr_mammo"),
    "table": _reader("table"),  # the user's own
}
"""From a folder (and the reader's own options) to a checked image table, by dataset."""

# Lesions are masks there, which are images to decode.
_DECODING_READERS = ("cbis_ddsm",)


def load_dataset(
    name: str,
    *,
    data_dir: Path | None,
    cache_dir: Path,
    input: Literal["whole", "roi"],
    image_size: int,
    clahe: bool = False,
    workers: int = 0,
    reader_options: dict[str, Any] | None = None,
    phantom: dict[str, Any] | None = None,
    progress: bool = True,
) -> ImageDataset:
    """Read, check, prepare and cache a dataset.

    Args:
        name: a key of `READERS`.
        data_dir: where the release lies, `data` in the current folder by default; not used for the
            phantom. For `table`, the folder of the table, which holds the images.
        cache_dir: for prepared images and the phantom.
        input: "whole" (the breast) or "roi" (a crop around the lesion; images without one are
            left out).
        image_size: side S of the images in pixels.
        clahe: whether to equalise contrast locally.
        workers: processes, 0 for one per core; results do not depend on it.
        reader_options: keyword arguments of the reader.
        phantom: patients, seed and difficulty of the phantom.
        progress: whether to show bars.

    Raises:
        UserError: no such dataset or folder, a table that contradicts its files, no usable image,
            or images of one class only.
    """
    from sgc_experiments.data.cache import open_cache
    from sgc_experiments.data.preprocess import PreprocessSettings
    from sgc_experiments.data.schema import check_table, get_classes, get_quarantine

    if name not in READERS:
        raise UserError(f"dataset={name!r} is unknown; choose one of {', '.join(READERS)}.")
    root = data_dir or Path("data")
    if name == "phantom":
        root = generate_phantom(cache_dir, workers, progress, **(phantom or {}))
    work: dict[str, Any] = {"cache_dir": cache_dir, "workers": workers, "progress": progress}
    options = (reader_options or {}) | (work if name in _DECODING_READERS else {})
    table = READERS[name](root, **options)
    quarantine, classes = get_quarantine(table), get_classes(table)
    table = check_table(table, f"dataset {name}")
    settings = PreprocessSettings(input=input, image_size=image_size, clahe=clahe)
    if input == "roi":
        table = _with_lesions(table, quarantine)
    cached = open_cache(table, settings, root=root, **work)
    quarantine |= cached.rejected
    table = table[table["image_id"].isin(cached.sources)].reset_index(drop=True)
    shared = _under_two_patients(table, cached.sources)
    images, boxes = cached.images, cached.boxes
    if shared.any():
        quarantine |= _note_shared(name, table[shared])
        table = table[~shared].reset_index(drop=True)
        images, boxes = images[~shared], boxes[~shared]  # rare: a copy in memory
    _require_usable(name, table, quarantine, classes)
    return ImageDataset(
        name=name,
        table=table,
        images=images,
        boxes=boxes,
        classes=classes,
        quarantine=_quarantine_table(quarantine),
        digest=_digest(table, cached.sources, quarantine, settings.as_dict(), classes),
        preprocessing=settings.as_dict(),
    )


def generate_phantom(cache_dir: Path, workers: int, progress: bool, **parameters: Any) -> Path:
    """Write the phantom on first use; the folder's name says what is in it.

    Args:
        cache_dir: the release lies below it.
        workers: processes, 0 for one per core; the files do not depend on it.
        progress: whether to show a bar.
        parameters: patients, seed and difficulty.

    Returns:
        The release folder.
    """
    from sgc_experiments.data.phantom.inbreast_layout import FORMAT, write_inbreast

    name = "-".join(f"{key}_{value}" for key, value in sorted(parameters.items()))
    folder = cache_dir / "phantom" / f"inbreast-{FORMAT}-{name}"
    return write_inbreast(folder, workers=workers, progress=progress, **parameters)


def _with_lesions(table: pd.DataFrame, quarantine: dict[str, str]) -> pd.DataFrame:
    """Return the images with a lesion; note the others in the quarantine."""
    from sgc_experiments.data.rejection import Reason
    from sgc_experiments.data.schema import get_unboxed

    annotated = table["lesions"].map(len) > 0
    reasons = get_unboxed(table)
    for image_id in table.loc[~annotated, "image_id"]:
        quarantine[image_id] = reasons.get(image_id, Reason.NO_LESION)
    return table[annotated].reset_index(drop=True)


def _note_shared(name: str, table: pd.DataFrame) -> dict[str, str]:
    """Tell of images whose files lie under two patients; their part of the quarantine."""
    from sgc_experiments.data.rejection import Reason

    _log.warning("dataset=%s: %d images left out (%s)", name, len(table), Reason.SHARED_FILE)
    return dict.fromkeys(table["image_id"], Reason.SHARED_FILE)


def _under_two_patients(table: pd.DataFrame, sources: dict[str, str]) -> np.ndarray:
    """Say of every image whether another patient has the same file, (N,) bool.

    Copies would fall into training and test, and nobody knows whose image it is.
    """
    content = table["image_id"].map(sources)
    shared: np.ndarray = table.groupby(content)["patient"].transform("nunique").to_numpy() > 1
    return shared


def _require_usable(
    name: str, table: pd.DataFrame, quarantine: dict[str, str], classes: tuple[str, ...]
) -> None:
    present = sorted(set(table["label"]))
    if len(present) == len(classes):
        return
    counts = _quarantine_table(quarantine)["reason"].value_counts()
    left_out = "; ".join(f"{count} × {reason}" for reason, count in counts.items()) or "none"
    there = " and ".join(classes[label] for label in present)
    found = f"only {there} images" if present else "no usable image"
    needed = "both classes" if len(classes) == 2 else f"all {len(classes)} classes"
    remedy = "check that the release is complete"
    if name == "table":
        remedy = "correct the label column, or classes="
    raise UserError(
        f"dataset={name} has {found}, where {needed} are needed (left out: {left_out}); {remedy}."
    )


def _quarantine_table(quarantine: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    rows = sorted((image_id, str(reason)) for image_id, reason in quarantine.items())
    return pd.DataFrame(rows, columns=["image_id", "reason"])


def _digest(
    table: pd.DataFrame,
    sources: dict[str, str],
    quarantine: dict[str, str],
    preprocessing: dict[str, Any],
    classes: tuple[str, ...],
) -> str:
    """Hash what a result depends on: files, table and settings, but not where the files lie."""
    facts = table.drop(columns="path").assign(source=table["image_id"].map(sources))
    content = [facts.to_dict("records"), sorted(quarantine.items()), preprocessing, classes]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def show_stages(dataset: ImageDataset, rows: pd.DataFrame) -> list[dict[str, np.ndarray] | None]:
    """Prepare some images again and keep a picture of each step.

    Args:
        dataset: from `load_dataset`.
        rows: rows of its table.

    Returns:
        For each row the fields of `stages.Stages` by name; None if its file has vanished since.
    """
    from sgc_experiments.data.decode_pool import run_isolated
    from sgc_experiments.data.prepare import PrepareTask
    from sgc_experiments.data.preprocess import PreprocessSettings
    from sgc_experiments.data.rejection import RejectedFile
    from sgc_experiments.data.stages import stages_of_file

    settings = PreprocessSettings(**dataset.preprocessing)
    tasks = [
        PrepareTask(path, lesions[0] if lesions else None, settings)
        for path, lesions in rows[["path", "lesions"]].itertuples(index=False)
    ]
    found = dict(run_isolated(stages_of_file, tasks))
    return [
        None if isinstance(stages, RejectedFile) else stages._asdict()
        for stages in (found[position] for position in range(len(tasks)))
    ]
