"""Synthetic mammograms in the shape of a VinDr-Mammo 1.0.0 download, quirks included.

    images/<study_id>/<image_id>.dicom
    breast-level_annotations.csv  finding_annotations.csv  metadata.csv  SHA256SUMS.txt

Planted, because a reader of the real release has to survive it: identifiers that are MD5 digests
and so no valid UIDs; no SOP class in the data set and `1.2.3.4` in the file meta information;
MONOCHROME1 images with a padded strip that would shine if it were inverted; windows with several
values, which `metadata.csv` spells as list literals; burnt-in markers; two images of the same side
and view; boxes that leave their image; findings without a grade; benign images without a box.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sgc_experiments.data.phantom.dicom_writer import check_syntax, write_dicom
from sgc_experiments.data.phantom.render import PhantomView, check_difficulty, render_patient
from sgc_experiments.data.phantom.staging import in_parallel, is_test_rank, ranks, staged

QUIRK_PERIOD = 40  # the planted contradictions stay few in a large release
BITS = 12
WHITE = 2**BITS - 1
PADDED_COLUMNS = 40
REMOVED_SOP_CLASS = "1.2.3.4"
FINDINGS = {"mass": "Mass", "calcification": "Suspicious Calcification"}

_IMAGE = (
    "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density"
)
BREAST_COLUMNS = f"{_IMAGE},split"
FINDING_COLUMNS = f"{_IMAGE},finding_categories,finding_birads,xmin,ymin,xmax,ymax,split"
# The identifier column stands twice in the released table.
METADATA_COLUMNS = (
    "Series Instance UID,SOP Instance UID,SOP Instance UID,Patient's Age,Image Laterality,"
    "View Position,Photometric Interpretation,Rows,Columns,Pixel Padding Value,Window Center,"
    "Window Width,Rescale Intercept,Rescale Slope,Manufacturer,Manufacturer's Model Name"
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What one process needs to know to write one study."""

    root: Path
    patient: int
    malignant: bool
    rank: int
    seed: int
    difficulty: str
    syntax: str


def write_vindr_mammo(
    out: Path,
    *,
    patients: int,
    seed: int,
    difficulty: str = "standard",
    syntax: str = "native",
    workers: int = 0,
) -> Path:
    """Write a synthetic VinDr-Mammo release to the new folder `out`; same seed, same bytes.

    Args:
        out: the folder to create. It appears complete or not at all.
        patients: studies; ten or more have both classes in both official subsets.
        seed: of the phantom.
        difficulty: a key of `render.DIFFICULTIES`.
        syntax: a key of `dicom_writer.SYNTAXES`.
        workers: processes; 0 takes one per core.

    Raises:
        UserError: `out` exists, or an unknown syntax or difficulty.
    """
    check_syntax(syntax)
    check_difficulty(difficulty)
    with staged(out) as root:
        jobs = [
            Job(root, patient, malignant, rank, seed, difficulty, syntax)
            for patient, (malignant, rank) in enumerate(ranks(patients, seed=seed))
        ]
        images = [row for rows in in_parallel(_write_study, jobs, workers=workers) for row in rows]
        _write_csv(root / "breast-level_annotations.csv", BREAST_COLUMNS, images)
        findings = [image | finding for image in images for finding in image["findings"]]
        _write_csv(root / "finding_annotations.csv", FINDING_COLUMNS, findings)
        _write_csv(root / "metadata.csv", METADATA_COLUMNS, images)
        _write_checksums(root)
    return Path(out)


def _digest(*source: object) -> str:
    return hashlib.md5(repr(("vindr_mammo", *source)).encode(), usedforsecurity=False).hexdigest()


def _write_study(job: Job) -> list[Row]:
    """Write one study's images; returns what the three tables say about each."""
    views = render_patient(job.patient, seed=job.seed, difficulty=job.difficulty)
    if job.rank % QUIRK_PERIOD == 0:
        views.append(views[0])  # exposed twice
    folder = job.root / "images" / _digest(job.seed, job.patient)
    folder.mkdir(parents=True)
    return [_write_image(job, folder, number, view) for number, view in enumerate(views)]


def _write_image(job: Job, folder: Path, number: int, view: PhantomView) -> Row:
    image = _digest(job.seed, job.patient, number)
    series = _digest(job.seed, job.patient, "series")
    inverted = job.patient % 3 == 1
    pixels = _with_marker(view) if job.patient % 5 == 3 else view.pixels
    shift = 0
    attributes = _attributes(job, folder.name, series, image)
    if inverted:
        # The strip lies away from the chest wall; its value is that of the brightest tissue.
        at_left = view.laterality == "R"
        shift = PADDED_COLUMNS if at_left else 0
        strip = (PADDED_COLUMNS, 0) if at_left else (0, PADDED_COLUMNS)
        pixels = np.pad(WHITE - pixels, ((0, 0), strip), constant_values=0)
        attributes["PixelPaddingValue"] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's complaint that the identifiers are no UIDs
        write_dicom(
            folder / f"{image}.dicom",
            pixels,
            uid_seed=image,
            syntax=job.syntax,
            photometric="MONOCHROME1" if inverted else "MONOCHROME2",
            bits_stored=BITS,
            sop_class=REMOVED_SOP_CLASS,
            attributes=attributes,
        )
    return {
        **_labels(job, view, shift),
        "study_id": folder.name,
        "series_id": series,
        "image_id": image,
        "laterality": view.laterality,
        "view_position": view.view,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "Series Instance UID": series,
        "SOP Instance UID": image,
        "Image Laterality": view.laterality,
        "View Position": view.view,
        "Photometric Interpretation": "MONOCHROME1" if inverted else "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "Pixel Padding Value": attributes.get("PixelPaddingValue", ""),
        "Window Center": attributes["WindowCenter"],
        "Window Width": attributes["WindowWidth"],
        "Rescale Intercept": 0,
        "Rescale Slope": 1,
    }


def _attributes(job: Job, study: str, series: str, image: str) -> Row:
    """What a file's header says beside its pixels; some windows have two values."""
    return {
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "SOPInstanceUID": image,
        "SOPClassUID": None,
        "WindowCenter": [2048, 1500] if job.patient % 4 == 2 else 2048,
        "WindowWidth": [4096, 3000] if job.patient % 4 == 2 else 4096,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }


def _labels(job: Job, view: PhantomView, shift: int) -> Row:
    """What the tables say about the breast and the patient."""
    grade = _birads(view, job.rank)
    return {
        "breast_birads": f"BI-RADS {grade}",
        "breast_density": f"DENSITY {'ABCD'[view.density - 1]}",
        "split": "test" if is_test_rank(job.rank) else "training",
        "findings": _findings(view, grade, shift, job.rank),
        "Patient's Age": f"{40 + job.patient % 40:03d}Y",
    }


def _birads(view: PhantomView, rank: int) -> int:
    """BI-RADS 4 and 5 for malignant patients; a benign one in three has no finding."""
    if view.malignant:
        return 5 if view.latent > 0.8 else 4
    return 2 - rank % 2 if rank % 3 == 2 else 3


def _findings(view: PhantomView, grade: int, shift: int, rank: int) -> list[Row]:
    """The rows of the finding table for one image; `shift` columns were padded at its left."""
    if grade < 3:
        return [{"finding_categories": ["No Finding"]}]
    (x0, y0), (x1, y1) = view.outline.min(0), view.outline.max(0)
    findings: list[Row] = [
        {
            "finding_categories": [FINDINGS[view.kind]],
            "finding_birads": f"BI-RADS {grade}",
            "xmin": round(float(x0) + shift, 3),
            "ymin": round(float(y0), 3),
            "xmax": round(float(x1) + shift, 3),
            "ymax": round(float(y1), 3),
        }
    ]
    if rank % QUIRK_PERIOD == 1:
        height = view.pixels.shape[0]
        corner = {"xmin": -5.25, "ymin": height - 20.5, "xmax": 15.0, "ymax": height + 7.75}
        findings.append({"finding_categories": ["Skin Thickening", "Skin Retraction"]} | corner)
    return findings


def _with_marker(view: PhantomView) -> np.ndarray:
    """The view with its name burnt into the upper corner that the breast leaves free."""
    height, width = view.pixels.shape
    letters = np.zeros((height, width), np.uint8)
    place = (width - 110 if view.laterality == "L" else 10, 40)
    text = f"{view.laterality}{view.view}"
    cv2.putText(letters, text, place, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1, 2)
    return np.where(letters, np.uint16(WHITE), view.pixels)


def _write_csv(path: Path, columns: str, rows: Iterable[Row]) -> None:
    names = columns.split(",")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([row.get(name, "") for name in names] for row in rows)


def _write_checksums(root: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(root).as_posix()}\n"
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
    (root / "SHA256SUMS.txt").write_text("".join(lines), encoding="utf-8")
