"""Synthetic mammograms in the shape of a CBIS-DDSM download, quirks included.

Every layout that is in circulation can be written: the four DICOM ones differ in folder and file
names only (`cbis_ddsm_paths`), the JPEG mirror stores 8 bits and one folder per series. All come
with the four case tables. What a reader of the real release has to survive is planted on purpose:

- path columns that end in a line break, CRLF, missing fields, density 0;
- mask and crop in one series or in two, half of the time under each other's name;
- masks of another size than their image;
- patients in both official subsets, with one breast view in both;
- breast views that are stored twice, once per case table, with different pathology;
- images with a benign abnormality beside the malignant one.

Images are Secondary Capture, 16 bits over the full range, MONOCHROME2, as in the release.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from pydicom.uid import SecondaryCaptureImageStorage

from sgc_experiments.data.phantom.cbis_ddsm_paths import (
    MANIFEST,
    Series,
    Style,
    check_style,
    synthetic_uid,
)
from sgc_experiments.data.phantom.dicom_writer import check_syntax, write_dicom
from sgc_experiments.data.phantom.render import PhantomView, check_difficulty, render_patient
from sgc_experiments.data.phantom.staging import in_parallel, is_test_rank, ranks, staged

QUIRK_PERIOD = 40  # the planted contradictions stay few in a large release
OTHER_KIND = {"Mass": "Calc", "Calc": "Mass"}
SIDES = {"L": "LEFT", "R": "RIGHT"}
JPEG_QUALITY = 95
MASK_SHRINK = 0.87  # as in 4386 x 1789 against 5041 x 2056 pixels
FULL, CROP, MASK = "full mammogram images", "cropped images", "ROI mask images"

_COMMON = "left or right breast,image view,abnormality id,abnormality type"
_PATHS = "image file path,cropped image file path,ROI mask file path"
CASE_COLUMNS = {
    "Mass": f"patient_id,breast_density,{_COMMON},mass shape,mass margins,"
    f"assessment,pathology,subtlety,{_PATHS}",
    "Calc": f"patient_id,breast density,{_COMMON},calc type,calc distribution,"
    f"assessment,pathology,subtlety,{_PATHS}",
}
METADATA_COLUMNS = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,"
    "Study Description,Study Date,Series Description,Manufacturer,Modality,SOP Class Name,"
    "SOP Class UID,Number of Images,File Size,File Location,Download Timestamp"
)
DICOM_INFO_COLUMNS = (
    "file_path,image_path,BodyPartExamined,Columns,Laterality,Modality,PatientID,PatientName,"
    "PatientOrientation,Rows,SeriesDescription,SeriesInstanceUID,StudyInstanceUID"
)
META_COLUMNS = "SeriesInstanceUID,StudyInstanceUID,Modality,SeriesDescription,ImageCount"
Row = dict[str, object]


@dataclass(frozen=True)
class Job:
    """What one process needs to know to write one patient."""

    root: Path
    patient: int
    malignant: bool
    rank: int
    seed: int
    difficulty: str
    style: str
    syntax: str


@dataclass(frozen=True)
class Abnormality:
    """One row of a case table to be: a lesion of a view, in one of the four tables."""

    view: PhantomView
    number: int
    kind: str  # "Mass" | "Calc"
    subset: str  # "Training" | "Test"
    pathology: str

    @property
    def image_folder(self) -> str:
        """The Folder of its image, which is also the image's DICOM PatientID."""
        side = SIDES[self.view.laterality]
        patient = f"P_{self.view.patient + 1:05d}"
        return f"{self.kind}-{self.subset}_{patient}_{side}_{self.view.view}"


def write_cbis_ddsm(
    out: Path,
    *,
    patients: int,
    seed: int,
    difficulty: str = "standard",
    style: Style = "classic",
    syntax: str = "native",
    workers: int = 0,
) -> Path:
    """Write a synthetic CBIS-DDSM release to the new folder `out`; same seed, same bytes.

    Args:
        out: the folder to create. It appears complete or not at all.
        patients: ten or more have both classes in both official subsets.
        seed: of the phantom.
        difficulty: a key of `render.DIFFICULTIES`.
        style: "classic", "descriptive", "nbia", "newer" or "kaggle_jpeg".
        syntax: a key of `dicom_writer.SYNTAXES`; the JPEG mirror takes "native" only.
        workers: processes; 0 takes one per core.

    Raises:
        UserError: `out` exists, or an unknown style, syntax or difficulty.
    """
    check_style(style, syntax)
    check_syntax(syntax)
    check_difficulty(difficulty)
    with staged(out) as root:
        jobs = [
            Job(root, patient, malignant, rank, seed, difficulty, style, syntax)
            for patient, (malignant, rank) in enumerate(ranks(patients, seed=seed))
        ]
        written = in_parallel(_write_patient, jobs, workers=workers)
        cases = [row for rows, _ in written for row in rows]
        series = [row for _, rows in written for row in rows]
        _write_tables(root, style, cases, series)
    return Path(out)


def _write_patient(job: Job) -> tuple[list[Row], list[Row]]:
    """Write one patient's files; returns its case rows and a description of its files."""
    views = render_patient(job.patient, seed=job.seed, difficulty=job.difficulty)
    rng = np.random.default_rng([job.seed, 2, job.patient])
    writer = _SeriesWriter(job)
    images: dict[str, str] = {}
    cases = []
    for item in _abnormalities(views, job, rng):
        if item.image_folder not in images:
            images[item.image_folder] = writer.write_image(item)
        crop, mask = writer.write_lesion(item, rng)
        cases.append(_case_row(item, images[item.image_folder], crop, mask, rng))
    return cases, writer.files


def _abnormalities(
    views: list[PhantomView], job: Job, rng: np.random.Generator
) -> list[Abnormality]:
    """The case rows of one patient; patients of the first ranks carry the contradictions."""
    subset = "Test" if is_test_rank(job.rank) else "Training"
    benign = "BENIGN_WITHOUT_CALLBACK" if rng.random() < 0.3 else "BENIGN"
    pathology = "MALIGNANT" if job.malignant else benign
    items = [
        Abnormality(view, 1, "Mass" if view.kind == "mass" else "Calc", subset, pathology)
        for view in views
    ]
    first = items[0]
    other = OTHER_KIND[first.kind]
    quirk = job.rank % QUIRK_PERIOD
    if quirk == 0:  # leaks: one view is in both subsets, another in the test set only
        items.append(replace(first, kind=other, subset="Test"))
        items[1] = replace(items[1], kind=other, subset="Test")
    elif quirk == 1:  # the same view in both tables; a malignant one is called benign in one
        items.append(replace(first, kind=other, pathology=benign))
    elif quirk == 2:  # a smaller, benign lesion comes first
        items[0] = replace(first, number=2)
        smaller = replace(first.view, outline=_beside(first.view))
        items.insert(0, replace(first, view=smaller, pathology=benign))
    return items


def _beside(view: PhantomView) -> np.ndarray:
    """Half the lesion's outline, moved halfway to the middle of the image."""
    height, width = view.pixels.shape
    centre = view.outline.mean(0)
    middle = np.array([width / 2, height / 2])
    moved: np.ndarray = (view.outline - centre) / 2 + (centre + middle) / 2
    return moved


def _case_row(item: Abnormality, image: str, crop: str, mask: str, rng: np.random.Generator) -> Row:
    """One row of a case table, with fields missing here and there as in the release."""
    view = item.view
    missing = rng.random(3) < 0.1
    common = {
        "patient_id": f"P_{view.patient + 1:05d}",
        "left or right breast": SIDES[view.laterality],
        "image view": view.view,
        "abnormality id": item.number,
        "assessment": {"MALIGNANT": 5, "BENIGN": 4}.get(item.pathology, 2),
        "pathology": item.pathology,
        "subtlety": int(rng.integers(1, 6)),
        "image file path": image,
        "cropped image file path": crop,
        # The released path columns end in a line break inside the quotes.
        "ROI mask file path": f"{mask}\n",
        "table": (item.kind, item.subset),
    }
    density = 0 if missing[0] else view.density
    if item.kind == "Mass":
        return common | {
            "breast_density": density,
            "abnormality type": "mass",
            "mass shape": "" if missing[1] else "IRREGULAR-ARCHITECTURAL_DISTORTION",
            "mass margins": "" if missing[2] else "SPICULATED",
        }
    return common | {
        "breast density": density,
        "abnormality type": "calcification",
        "calc type": "" if missing[1] else "AMORPHOUS-PLEOMORPHIC",
        "calc distribution": "" if missing[2] else "CLUSTERED",
    }


class _SeriesWriter:
    """Writes the files of one patient and keeps a description of each for the tables."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.files: list[Row] = []
        self._serial = job.patient * 100

    def _series(self, folder: str, description: str) -> Series:
        self._serial += 2
        job = self._job
        study = synthetic_uid(job.seed, "study", self._serial, serial=self._serial + 1)
        series = synthetic_uid(job.seed, "series", self._serial, serial=self._serial)
        return Series(folder, study, series, description)

    def write_image(self, item: Abnormality) -> str:
        """Write a full mammogram; returns the reference of the case table."""
        series = self._series(item.image_folder, FULL)
        pixels = item.view.pixels << 4  # 12 bits to the full 16
        self._write(series, 0, 1, pixels, item.view)
        return series.reference(0)

    def write_lesion(self, item: Abnormality, rng: np.random.Generator) -> tuple[str, str]:
        """Write crop and mask; returns what the case table says they are, right or wrong."""
        shared, swapped, shrunk = rng.random() < 0.75, rng.random() < 0.5, rng.random() < 0.25
        folder = f"{item.image_folder}_{item.number}"
        mask, crop = _mask_and_crop(item.view, MASK_SHRINK if shrunk else 1.0)
        if shared:
            series = self._series(folder, MASK)
            contents = (mask, crop) if swapped else (crop, mask)
            for number, pixels in enumerate(contents):
                self._write(series, number, 2, pixels, item.view)
            return series.reference(0), series.reference(1)
        crops, masks = self._series(folder, CROP), self._series(folder, MASK)
        self._write(crops, 0, 1, crop, item.view)
        self._write(masks, 0, 1, mask, item.view)
        references = crops.reference(0), masks.reference(0)
        return references[::-1] if swapped else references

    def _write(
        self, series: Series, number: int, images: int, pixels: np.ndarray, view: PhantomView
    ) -> None:
        location = series.path(self._job.style, number)
        path = self._job.root / location
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._job.style == "kaggle_jpeg":
            grey = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
            encoded = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            path.write_bytes(encoded.tobytes())
        else:
            write_dicom(
                path,
                pixels,
                uid_seed=f"{self._job.seed}/{location}",
                syntax=self._job.syntax,
                bits_stored=8 * pixels.dtype.itemsize,
                sop_class=SecondaryCaptureImageStorage,
                attributes={
                    "PatientID": series.folder,
                    "PatientName": series.folder,
                    "StudyInstanceUID": series.study,
                    "SeriesInstanceUID": series.uid,
                    "SeriesDescription": series.description,
                    "BodyPartExamined": "BREAST",
                    "PatientOrientation": view.view,
                    "Laterality": view.laterality,
                },
            )
        self.files.append(_file_row(series, location.as_posix(), path, images, pixels, view))


def _mask_and_crop(view: PhantomView, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The lesion's mask, 8 bits, 0 and 255, and its 16-bit surroundings."""
    height, width = view.pixels.shape
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(view.outline).astype(np.int32)], 255)
    x, y, w, h = cv2.boundingRect(mask)
    crop = view.pixels[max(y - 10, 0) : y + h + 10, max(x - 10, 0) : x + w + 10] << 4
    size = (round(width * scale), round(height * scale))
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), crop


def _file_row(
    series: Series, location: str, path: Path, images: int, pixels: np.ndarray, view: PhantomView
) -> Row:
    """One file, in the vocabulary of both `metadata.csv` and `dicom_info.csv`."""
    return {
        "Series UID": series.uid,
        "Collection": "CBIS-DDSM",
        "3rd Party Analysis": "NO",
        "Subject ID": series.folder,
        "Study UID": series.study,
        "Series Description": series.description,
        "Modality": "MG",
        "SOP Class Name": "Secondary Capture Image Storage",
        "SOP Class UID": SecondaryCaptureImageStorage,
        "Number of Images": images,
        "File Size": path.stat().st_size,
        "File Location": f"./{location.partition('/')[2].rpartition('/')[0]}",
        "file_path": f"CBIS-DDSM/dicom/{series.uid}/{path.stem}.dcm",
        "image_path": f"CBIS-DDSM/{location}",
        "BodyPartExamined": "BREAST",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "Laterality": view.laterality,
        "PatientID": series.folder,
        "PatientName": series.folder,
        "PatientOrientation": view.view,
        # The mirror leaves out some descriptions.
        "SeriesDescription": "" if int(series.uid[-3:]) % 5 == 0 else series.description,
        "SeriesInstanceUID": series.uid,
        "StudyInstanceUID": series.study,
        "ImageCount": images,
    }


def _write_tables(root: Path, style: str, cases: list[Row], files: list[Row]) -> None:
    """Write the four case tables and what the layout adds to them."""
    tables = root / "csv" if style == "kaggle_jpeg" else root
    tables.mkdir(exist_ok=True)
    for kind, columns in CASE_COLUMNS.items():
        for subset, name in (("Training", "train"), ("Test", "test")):
            rows = [row for row in cases if row["table"] == (kind, subset)]
            _write_csv(
                tables / f"{kind.lower()}_case_description_{name}_set.csv", columns, rows, "\r\n"
            )
    one_per_series = list({row["Series UID"]: row for row in files}.values())
    if style == "kaggle_jpeg":
        _write_csv(tables / "dicom_info.csv", DICOM_INFO_COLUMNS, files, "\n")
        _write_csv(tables / "meta.csv", META_COLUMNS, one_per_series, "\n")
    elif style in ("nbia", "newer"):  # written by the NBIA Data Retriever
        if style == "newer":  # on Windows
            one_per_series = [
                row | {"File Location": str(row["File Location"]).replace("/", "\\")}
                for row in one_per_series
            ]
        _write_csv(root / MANIFEST / "metadata.csv", METADATA_COLUMNS, one_per_series, "\n")


def _write_csv(path: Path, columns: str, rows: Iterable[Row], line_end: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, columns.split(","), restval="", extrasaction="ignore", lineterminator=line_end
        )
        writer.writeheader()
        writer.writerows(rows)
