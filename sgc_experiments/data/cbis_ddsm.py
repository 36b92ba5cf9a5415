"""CBIS-DDSM (The Cancer Imaging Archive) -> the image table.

Lee et al., "A curated mammography data set for use in computer-aided detection and diagnosis
research", Scientific Data 4:170177 (2017). Digitised film, every image with at least one mass or
calcification whose pathology is proven. What the release asks of its reader:

- One row of a case table is one abnormality; one row of the image table is one breast view. A view
  that is listed twice (once for masses, once for calcifications, sometimes with different
  pathology) becomes one image, malignant if any of its abnormalities is.
- DICOM's PatientID names a view, not a patient. The patient is the `P_#####` within it.
- Mass and calcification tables were split into training and test independently, so that merging
  them puts some patients into both; `on_leak` says what happens to those.
- No patient is normal: every image shows a lesion.

Lesion boxes come from the segmentation masks (`cbis_ddsm_masks`), files from `cbis_ddsm_files`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd

from sgc_experiments.data.cbis_ddsm_files import FOLDER, ReleaseFiles, find_files
from sgc_experiments.data.cbis_ddsm_masks import LesionMask, lesion_boxes
from sgc_experiments.data.problems import Problems, read_csv_text, row_numbers
from sgc_experiments.data.schema import COLUMNS, Box, check_table, hashed
from sgc_experiments.errors import UserError

log = logging.getLogger("sgc_experiments.data")

SALT = "cbis_ddsm"
Abnormality = Literal["all", "mass", "calc"]
OnLeak = Literal["drop_test", "drop_train", "error"]
KINDS = {"all": ("mass", "calc"), "mass": ("mass",), "calc": ("calc",)}
SUBSETS = ("train", "test")
PATHOLOGIES = ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK")  # the gravest first
CASE_COLUMNS = (
    "patient id",
    "breast density",
    "left or right breast",
    "image view",
    "pathology",
    "image file path",
    "cropped image file path",
    "roi mask file path",
)
View = tuple[str, str, str]  # patient, side, view


class Abnormal(NamedTuple):
    """One row of a case table, joined to its files."""

    view: View
    subset: str  # "train" or "test"
    pathology: str
    density: str
    image: Path
    candidates: tuple[Path, ...]  # the files that may be its mask


def read_table(
    data_dir: Path,
    *,
    abnormality: Abnormality = "all",
    on_leak: OnLeak = "drop_test",
    cache_dir: Path | None = None,
    workers: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Read a CBIS-DDSM release below `data_dir` into the image table (`schema.COLUMNS`).

    Args:
        data_dir: any folder above the images and the four case tables, in any released layout.
        abnormality: which case tables to read. An image's label counts their rows only.
        on_leak: patients in both official subsets are taken out of the test images, out of the
            training images, or refused.
        cache_dir: where the boxes found in masks are kept for the next reading; None keeps none.
        workers: processes that decode masks; 0 takes one per core.
        progress: whether to show a bar while masks are decoded.

    Raises:
        UserError: no release there; tables that contradict the files or each other, all of it
            listed by row number; leaking patients under `on_leak="error"`.
    """
    for name, value, allowed in (
        ("abnormality", abnormality, get_args(Abnormality)),
        ("on_leak", on_leak, get_args(OnLeak)),
    ):
        if value not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}")
    root = Path(os.path.abspath(data_dir))
    files = find_files(root)
    problems = Problems("CBIS-DDSM")
    rows = []
    for kind, subset, path in _case_tables(files, root, KINDS[abnormality], problems):
        rows += _read_case_table(path, kind, subset, files, problems)
    problems.raise_if_any()

    views: dict[View, list[Abnormal]] = {}
    for row in rows:
        views.setdefault(row.view, []).append(row)
    subsets = _official_split(views, on_leak)
    views = {view: views[view] for view in subsets}
    boxes = lesion_boxes(_masks(views), cache_dir=cache_dir, workers=workers, progress=progress)
    if without := sum(mask not in boxes for mask in _masks(views)):
        log.warning("CBIS-DDSM: %d lesions have no readable mask", without)
    table = pd.DataFrame(
        [_image_row(view, views[view], subset, boxes) for view, subset in subsets.items()],
        columns=list(COLUMNS),
    )
    return check_table(table, "the CBIS-DDSM release")


def _case_tables(
    files: ReleaseFiles, root: Path, kinds: Iterable[str], problems: Problems
) -> list[tuple[str, str, Path]]:
    """The case tables to read as (kind, subset, path).

    Raises:
        UserError: one of them is missing.
    """
    found, missing = [], []
    for kind in kinds:
        for subset in SUBSETS:
            name = f"{kind}_case_description_{subset}_set.csv"
            paths = files.tables.get(name, [])
            if not paths:
                missing.append(name)
                continue
            if len({path.read_bytes() for path in paths}) > 1:
                problems.add(f"{name}: {len(paths)} files of that name differ in content")
            found.append((kind, subset, paths[0]))
    if missing:
        raise UserError(
            f"No CBIS-DDSM release in {root}: {', '.join(missing)} should lie there or below, "
            "beside the images; download images and case tables from The Cancer Imaging Archive "
            "(collection CBIS-DDSM) and set data_dir, or use dataset=phantom, which needs nothing."
        )
    return found


def _read_case_table(
    path: Path, kind: str, subset: str, files: ReleaseFiles, problems: Problems
) -> list[Abnormal]:
    """The abnormalities of one case table; what is wrong with it goes to `problems`."""
    table = read_csv_text(path)
    absent = [name for name in CASE_COLUMNS if name not in table.columns]
    if absent:
        problems.add(f"{path.name}: no column {', '.join(absent)}")
        return []
    if table.empty:
        problems.add(f"{path.name}: the table is empty")
        return []
    patient, side, view, pathology = (
        table[name].str.upper()
        for name in ("patient id", "left or right breast", "image view", "pathology")
    )
    images = [files.find(reference) for reference in table["image file path"]]
    folders = [_folder_fields(reference) for reference in table["image file path"]]
    expected = zip(
        [kind.upper()] * len(table),
        [{"train": "TRAINING", "test": "TEST"}[subset]] * len(table),
        patient,
        side,
        view,
        strict=True,
    )
    for what, wrong in (
        ("patient_id is not of the form P_00000", ~patient.str.fullmatch(r"P_\d+")),
        ("left or right breast is neither LEFT nor RIGHT", ~side.isin(["LEFT", "RIGHT"])),
        ("image view is neither CC nor MLO", ~view.isin(["CC", "MLO"])),
        (f"pathology is none of {', '.join(PATHOLOGIES)}", ~pathology.isin(PATHOLOGIES)),
        (
            "image file path names another view, or none",
            pd.Series([fields != own for fields, own in zip(folders, expected, strict=True)]),
        ),
        ("the image is not on disk", pd.Series([not found for found in images])),
        (
            "several files lie where one image is expected",
            pd.Series([len(found) > 1 for found in images]),
        ),
    ):
        problems.add_rows(path.name, what, row_numbers(wrong))
    candidates = [
        tuple(dict.fromkeys(files.find(mask) + files.find(crop)))
        for mask, crop in zip(
            table["roi mask file path"], table["cropped image file path"], strict=True
        )
    ]
    return [
        Abnormal((patient[i], side[i], view[i]), subset, pathology[i], density, images[i][0], mask)
        for i, (density, mask) in enumerate(zip(table["breast density"], candidates, strict=True))
        if images[i]
    ]


def _folder_fields(reference: str) -> tuple[str, ...]:
    """(MASS|CALC, TRAINING|TEST, patient, side, view) as a path's Folder spells them; () if not."""
    match = FOLDER.fullmatch(re.split(r"[/\\]", reference)[0])
    if match is None:
        return ()
    return tuple(match[name].upper() for name in ("kind", "subset", "patient", "side", "view"))


def _official_split(views: dict[View, list[Abnormal]], on_leak: OnLeak) -> dict[View, str]:
    """The official subset of every view that stays, in a fixed order.

    A view counts as a training image if any of its rows is one. Leaking patients keep their images
    of one subset and lose those of the other, so that no patient is left in both.
    """
    subsets_of: dict[str, set[str]] = {}
    for (patient, _, _), rows in views.items():
        subsets_of.setdefault(patient, set()).update(row.subset for row in rows)
    leaking = {patient for patient, subsets in subsets_of.items() if len(subsets) > 1}
    if leaking and on_leak == "error":
        raise UserError(
            f"{len(leaking)} CBIS-DDSM patients are in both the official training and test set; "
            "set on_leak=drop_test or on_leak=drop_train."
        )
    kept = "test" if on_leak == "drop_train" else "train"
    split = {}
    for view, rows in sorted(views.items()):
        subsets = {row.subset for row in rows}
        if view[0] not in leaking:
            split[view] = subsets.pop()
        elif kept in subsets:
            split[view] = kept
    if leaking:
        log.warning(
            "CBIS-DDSM: %d patients are in both the official training and test set; "
            "%d of their images are dropped (on_leak=%s)",
            len(leaking),
            len(views) - len(split),
            on_leak,
        )
    return split


def _masks(views: dict[View, list[Abnormal]]) -> list[LesionMask]:
    """What the lesion box of every abnormality is to be read from."""
    return [
        LesionMask(_gravest(rows).image, row.candidates) for rows in views.values() for row in rows
    ]


def _gravest(rows: list[Abnormal]) -> Abnormal:
    """The row that stands for a view, which may be stored twice; file order decides ties."""
    return min(rows, key=lambda row: (PATHOLOGIES.index(row.pathology), row.image))


def _image_row(
    view: View,
    rows: list[Abnormal],
    subset: str,
    boxes: dict[LesionMask, Box],
) -> dict[str, object]:
    """One row of the image table."""
    patient, side, position = view
    gravest = _gravest(rows)
    label = int(gravest.pathology == "MALIGNANT")
    lesions = []
    for row in rows:
        box = boxes.get(LesionMask(gravest.image, row.candidates))
        if box is not None:
            same_label = int(row.pathology == "MALIGNANT") == label
            lesions.append((not same_label, -(box[2] - box[0]) * (box[3] - box[1]), box))
    # 0 stands for "not assessed" in the released tables.
    densities = [row.density for row in rows if row.density in ("1", "2", "3", "4")]
    return {
        "image_id": hashed("img", *view, salt=SALT),
        "patient": hashed("pat", patient, salt=SALT),
        "exam": hashed("exam", patient, salt=SALT),  # one examination per patient is released
        "laterality": side[0],
        "view": position,
        "label": label,
        "assessment": gravest.pathology,
        "density": max(densities, default=""),
        "official_split": subset,
        "path": str(gravest.image),
        "lesions": tuple(dict.fromkeys(box for _, _, box in sorted(lesions))),
    }
