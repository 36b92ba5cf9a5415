"""CBIS-DDSM (The Cancer Imaging Archive) -> the image table.

Lee et al., "A curated mammography data set for use in computer-aided detection and diagnosis
research", Scientific Data 4:170177 (2017). Digitised film, every image with at least one mass or
calcification whose pathology is proven. What the release asks of its reader:

- One row of a case table is one abnormality; one row of the image table is one breast view. A view
  that is listed twice (once for masses, once for calcifications, sometimes with different
  pathology) becomes one image, malignant if any of its abnormalities is, whichever table lists it.
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

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.cbis_ddsm_files import FOLDER, ReleaseFiles, find_files
from sgc_experiments.data.cbis_ddsm_masks import LesionMask, lesion_boxes
from sgc_experiments.data.problems import Problems, read_csv_text, row_numbers
from sgc_experiments.data.rejection import Reason
from sgc_experiments.data.schema import COLUMNS, check_table, hashed, set_quarantine, set_unboxed
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


class BreastView(NamedTuple):
    """One image to be: a breast view with all of its rows, even those of the other subset."""

    view: View
    subset: str
    rows: tuple[Abnormal, ...]
    pathology: str  # the gravest of any table, chosen or not

    @property
    def file(self) -> Path:
        """The file that stands for it: a view may be stored twice."""
        own = [row for row in self.rows if row.subset == self.subset]
        return min(own, key=lambda row: (PATHOLOGIES.index(row.pathology), row.image)).image

    @property
    def masks(self) -> list[LesionMask]:
        """What the lesion box of every row is to be read from."""
        return [LesionMask(self.file, row.candidates) for row in self.rows]

    @property
    def label(self) -> int:
        """1 if any abnormality of the view is malignant."""
        return _label(self.pathology)


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
        abnormality: whose images and boxes to read. An image's label counts all its abnormalities.
        on_leak: patients in both official subsets are taken out of the test images, out of the
            training images, or refused.
        cache_dir: where the boxes found in masks are kept for the next reading; None keeps none.
        workers: processes that decode masks; 0 takes one per core.
        progress: whether to show a bar while masks are decoded.

    Returns:
        A checked table. Images that `on_leak` takes out are in its quarantine.

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
    rows: list[Abnormal] = []
    pathologies: list[tuple[View, str]] = []
    for kind, subset, path in _case_tables(files, root, problems):
        cases = _read_cases(path, kind, subset, problems)
        pathologies += zip(cases["breast view"], cases["pathology"], strict=True)
        if kind in KINDS[abnormality]:
            rows += _join_files(cases, path.name, subset, files, problems)
    problems.raise_if_any()
    if not rows:
        raise UserError(f"The CBIS-DDSM case tables in {root} are empty; download them again.")

    images, dropped = _merge(rows, pathologies, on_leak)
    masks = [mask for image in images for mask in image.masks]
    boxes = lesion_boxes(masks, cache_dir=cache_dir, workers=workers, progress=progress)
    if without := sum(mask not in boxes for mask in masks):
        log.warning("CBIS-DDSM: %d lesions have no readable mask", without)
    table = pd.DataFrame([_image_row(image, boxes) for image in images], columns=list(COLUMNS))
    table = check_table(table, "the CBIS-DDSM release")
    unboxed = {_image_id(i.view): _why_unboxed(i) for i in images if not _lesions(i, boxes)}
    table = set_unboxed(table, unboxed)
    return set_quarantine(table, {_image_id(view): Reason.LEAK for view in dropped})


def _case_tables(
    files: ReleaseFiles, root: Path, problems: Problems
) -> list[tuple[str, str, Path]]:
    """The case tables as (kind, subset, path).

    Raises:
        UserError: one of them is missing.
    """
    found, missing = [], []
    for kind in KINDS["all"]:
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
            "beside the images (labels need all four tables, whatever the abnormality); download "
            "images and case tables from The Cancer Imaging Archive (collection CBIS-DDSM) and set "
            "data_dir, or use dataset=phantom, which needs nothing."
        )
    return found


def _read_cases(path: Path, kind: str, subset: str, problems: Problems) -> pd.DataFrame:
    """A case table with the column "breast view"; what is wrong with it goes to `problems`.

    Args:
        path: of the table.
        kind: "mass" or "calc", as its name says.
        subset: "train" or "test", as its name says.
        problems: where contradictions are noted.
    """
    table = read_csv_text(path)
    if absent := [name for name in CASE_COLUMNS if name not in table.columns]:
        problems.add(f"{path.name}: no column {', '.join(absent)}")
        return pd.DataFrame(columns=[*CASE_COLUMNS, "breast view"])
    patient, side, view, pathology = (
        table[name].str.upper()
        for name in ("patient id", "left or right breast", "image view", "pathology")
    )
    views = list(zip(patient, side, view, strict=True))
    named = [_folder_fields(reference) for reference in table["image file path"]]
    own = (kind.upper(), {"train": "TRAINING", "test": "TEST"}[subset])
    strayed = [fields != (*own, *view) for fields, view in zip(named, views, strict=True)]
    for what, wrong in (
        ("patient_id is not P_ and a number", ~patient.str.fullmatch(r"P_\d+")),
        ("left or right breast is neither LEFT nor RIGHT", ~side.isin(["LEFT", "RIGHT"])),
        ("image view is neither CC nor MLO", ~view.isin(["CC", "MLO"])),
        (f"pathology is none of {', '.join(PATHOLOGIES)}", ~pathology.isin(PATHOLOGIES)),
        ("image file path names another view, or none", pd.Series(strayed, table.index)),
    ):
        problems.add_rows(path.name, what, row_numbers(wrong))
    return table.assign(**{"breast view": pd.Series(views, table.index), "pathology": pathology})


def _join_files(
    cases: pd.DataFrame, name: str, subset: str, files: ReleaseFiles, problems: Problems
) -> list[Abnormal]:
    """The abnormalities of one case table with their files; what is missing goes to `problems`."""
    images = pd.Series([files.find(ref) for ref in cases["image file path"]], cases.index)
    count = images.map(len)
    for what, wrong in (
        ("the image is not on disk", count == 0),
        ("several files lie where one image is expected", count > 1),
    ):
        problems.add_rows(name, what, row_numbers(wrong))
    return [
        Abnormal(
            row["breast view"],
            subset,
            row["pathology"],
            row["breast density"],
            image[0],
            tuple(
                dict.fromkeys(
                    files.find(row["roi mask file path"])
                    + files.find(row["cropped image file path"])
                )
            ),
        )
        for row, image in zip(cases.to_dict("records"), images, strict=True)
        if image
    ]


def _folder_fields(reference: str) -> tuple[str, ...]:
    """(MASS|CALC, TRAINING|TEST, patient, side, view) as a path's Folder spells them; () if not."""
    match = FOLDER.fullmatch(re.split(r"[/\\]", reference)[0])
    if match is None:
        return ()
    return tuple(match[name].upper() for name in ("kind", "subset", "patient", "side", "view"))


def _merge(
    rows: list[Abnormal], pathologies: Iterable[tuple[View, str]], on_leak: OnLeak
) -> tuple[list[BreastView], list[View]]:
    """One image per breast view, in a fixed order, and each patient in one official subset.

    Leaking patients keep their images of one subset and lose those that are in the other only.

    Args:
        rows: of the chosen abnormalities.
        pathologies: of every abnormality, chosen or not.
        on_leak: what happens to leaking patients.

    Returns:
        The images, and the views that are lost.
    """
    gravest: dict[View, str] = {}
    for view, pathology in pathologies:
        gravest[view] = min(gravest.get(view, pathology), pathology, key=PATHOLOGIES.index)
    views: dict[View, list[Abnormal]] = {}
    subsets_of: dict[str, set[str]] = {}
    for row in rows:
        views.setdefault(row.view, []).append(row)
        subsets_of.setdefault(row.view[0], set()).add(row.subset)
    leaking = {patient for patient, subsets in subsets_of.items() if len(subsets) > 1}
    if leaking and on_leak == "error":
        raise UserError(
            f"{len(leaking)} CBIS-DDSM patients are in both the official training and test set; "
            "set on_leak=drop_test or on_leak=drop_train."
        )
    kept = "test" if on_leak == "drop_train" else "train"
    images, dropped = [], []
    for view, own in sorted(views.items()):
        subset = kept if view[0] in leaking else own[0].subset
        if any(row.subset == subset for row in own):
            images.append(BreastView(view, subset, tuple(own), gravest[view]))
        else:
            dropped.append(view)
    if leaking:
        log.warning(
            "CBIS-DDSM: %d patients are in both the official training and test set; "
            "%d of their images are dropped (on_leak=%s)",
            len(leaking),
            len(dropped),
            on_leak,
        )
    return images, dropped


def _label(pathology: str) -> int:
    return int(pathology == "MALIGNANT")


def _image_id(view: View) -> str:
    return hashed("img", *view, salt=SALT)


def _lesions(image: BreastView, boxes: dict[LesionMask, Box]) -> tuple[Box, ...]:
    """The boxes of a view: those of its label first, the largest first.

    () if none of them is of the label's kind: a crop must show what the label says.
    """
    found = [
        (_label(row.pathology) != image.label, -(box[2] - box[0]) * (box[3] - box[1]), box)
        for row, mask in zip(image.rows, image.masks, strict=True)
        if (box := boxes.get(mask)) is not None
    ]
    if all(other for other, _, _ in found):
        return ()
    return tuple(dict.fromkeys(box for _, _, box in sorted(found)))


def _why_unboxed(image: BreastView) -> Reason:
    """Why a view has no lesion box, though every view shows a lesion."""
    shown = any(_label(row.pathology) == image.label for row in image.rows)
    return Reason.BAD_ANNOTATION if shown else Reason.OTHER_LESION


def _image_row(image: BreastView, boxes: dict[LesionMask, Box]) -> dict[str, object]:
    """One row of the image table."""
    patient, side, position = image.view
    # 0 stands for "not assessed" in the released tables.
    densities = [row.density for row in image.rows if row.density in ("1", "2", "3", "4")]
    return {
        "image_id": _image_id(image.view),
        "patient": hashed("pat", patient, salt=SALT),
        "exam": hashed("exam", patient, salt=SALT),  # one examination per patient is released
        "laterality": side[0],
        "view": position,
        "label": image.label,
        "assessment": image.pathology,
        "density": max(densities, default=""),
        "official_split": image.subset,
        "path": str(image.file),
        "lesions": _lesions(image, boxes),
    }
