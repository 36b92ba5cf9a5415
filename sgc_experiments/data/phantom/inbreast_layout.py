"""Write a phantom as an *INbreast release*, with that release's habits and quirks.

    out/
        phantom.json                  what was asked for
        phantom_truth.csv             the latent truth, for the yardsticks only
        INbreast Release 1.0/
            INbreast.csv              `;`, CRLF
            AllDICOMs/20000004_98429c0bdf78c0c7_MG_L_CC_ANON.dcm
            AllXML/20000004.xml       OsiriX regions of interest

Quirks, all of them the real release's: the patient is known by the file name only, and the headers
hold neither patient, nor date, nor view; `ML` in a file name is `MLO` in the table; one view is
`FB` (a caudocranial projection); one density is blank; some images have no annotation file; besides
lesions there are dots of one or two points and pectoral muscles, and some polygons leave the image;
12 or 14 significant bits in 16. A few images carry a burnt-in marker beside the breast.

The same arguments give the same files, byte for byte, whatever the number of workers.
"""

import csv
import hashlib
import json
import plistlib
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sgc_experiments.data.phantom.dicom_writer import check_syntax, write_dicom
from sgc_experiments.data.phantom.render import PhantomView, check_difficulty, render_patient
from sgc_experiments.data.phantom.staging import in_parallel, staged
from sgc_experiments.errors import UserError

RELEASE = "INbreast Release 1.0"
TRUTH = "phantom_truth.csv"
MIN_PATIENTS, MAX_PATIENTS = 10, 100_000

SETTINGS = "phantom.json"
FORMAT = 1
"""Raised whenever the same arguments would give other files than before."""

_TABLE_HEADER = (
    "Patient ID",
    "Patient age",
    "Laterality",
    "View",
    "Acquisition date",
    "File Name",
    "ACR",
    "Bi-Rads",
)
_TRUTH_HEADER = ("file_name", "patient", "malignant", "latent", "kind", "x0", "y0", "x1", "y1")

_POLYGON, _POINT = 15, 19
"""OsiriX's numbers for a closed polygon and a point."""

CsvRow = tuple[object, ...]


def write_inbreast(
    out: Path,
    *,
    patients: int,
    seed: int,
    difficulty: str,
    workers: int = 0,
    syntax: str = "native",
    progress: bool = True,
) -> Path:
    """Write a release of `patients` patients into `out`, unless it is there already.

    The release appears under its name only when it is complete: an interrupted call leaves
    nothing at `out`, and two calls at once leave one release.

    Args:
        out: folder to make. If it holds a release made with the same arguments, that is kept.
        patients: number of patients, `MIN_PATIENTS` to `MAX_PATIENTS`; 2 or 4 images each.
        seed: of everything random, at least 0.
        difficulty: a key of `render.DIFFICULTIES`.
        workers: processes; 0 takes one per available core. Changes nothing but the time.
        syntax: transfer syntax, a key of `dicom_writer.SYNTAXES`.
        progress: show a progress bar on stderr.

    Returns:
        The release folder, `out / RELEASE`.

    Raises:
        UserError: an argument out of range, or `out` holds something else.
    """
    _check_arguments(patients=patients, seed=seed, workers=workers)
    check_difficulty(difficulty)
    check_syntax(syntax)
    settings = {
        "format": FORMAT,
        "layout": "inbreast",
        "patients": patients,
        "seed": seed,
        "difficulty": difficulty,
        "syntax": syntax,
    }
    if _is_complete(out, settings):
        return out / RELEASE

    try:
        with staged(out) as folder:
            _fill(folder, settings, workers, progress)
    except OSError as error:
        # Another process may have been faster, which is as good if it wrote the same.
        if not _is_complete(out, settings):
            reason = error.strerror or "a file could not be finished"
            raise UserError(
                f"the phantom cannot be written to {out}: {reason}; "
                "choose a folder that is writable and has room"
            ) from error
    return out / RELEASE


def _fill(folder: Path, settings: dict[str, Any], workers: int, progress: bool) -> None:
    """Write everything that `settings` describe into an empty folder."""
    release = folder / RELEASE
    for name in ("AllDICOMs", "AllXML"):
        (release / name).mkdir(parents=True)
    arguments = {key: settings[key] for key in ("seed", "difficulty", "syntax")}
    write_one = partial(_write_patient, release=release, **arguments)
    numbers = range(settings["patients"])
    of_patients = in_parallel(write_one, numbers, workers=workers, progress=progress)
    images = list(chain.from_iterable(of_patients))
    _write_csv(
        release / "INbreast.csv",
        (_TABLE_HEADER, *(row for row, _ in images)),
        delimiter=";",
        lineterminator="\r\n",
    )
    truth = (_TRUTH_HEADER, *(truth for _, truth in images))
    _write_csv(folder / TRUTH, truth, delimiter=",", lineterminator="\n")
    (folder / SETTINGS).write_text(_as_text(settings))


def _check_arguments(*, patients: int, seed: int, workers: int) -> None:
    if not MIN_PATIENTS <= patients <= MAX_PATIENTS:
        raise UserError(
            f"patients={patients} is not possible for a phantom; "
            f"ask for {MIN_PATIENTS} to {MAX_PATIENTS}"
        )
    if seed < 0:
        raise UserError(f"seed={seed} is negative; the phantom takes a seed of 0 or more")
    if workers < 0:
        raise UserError(f"workers={workers} is negative; 0 means one per core")


def _is_complete(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds the release that `settings` describe.

    Raises:
        UserError: `out` exists and holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    recorded = out / SETTINGS
    if recorded.is_file() and recorded.read_text() == _as_text(settings):
        return True
    raise UserError(
        f"the phantom cannot be written to {out}: the folder holds something else; "
        "name a new folder or remove this one"
    )


def _as_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2) + "\n"


def _write_patient(
    patient: int, *, release: Path, seed: int, difficulty: str, syntax: str
) -> list[tuple[CsvRow, CsvRow]]:
    """Write one patient's images and annotations; return their table and truth rows."""
    token = hashlib.sha256(f"patient {seed} {patient}".encode()).hexdigest()[:16]
    date = 200801 + 100 * (patient % 3) + (patient * 7) % 12
    annotated = patient % 25 != 7
    results: list[tuple[CsvRow, CsvRow]] = []
    for index, view in enumerate(render_patient(patient, seed=seed, difficulty=difficulty)):
        image = 8 * patient + index
        number = 20_000_000 + 37 * image + int(token, 16) % 37
        name = "FB" if image == 0 else view.view
        file_name = f"{number}_{token}_MG_{view.laterality}_{name.replace('MLO', 'ML')}_ANON.dcm"
        dot = _dot(view) if patient % 4 == 1 else None
        pixels = _with_marks(view, dot, marker=patient % 6 == 2)
        # Two kinds of detector: one stores 12 bits, the other 14.
        bits = 12 if patient % 3 == 0 else 14
        write_dicom(
            release / "AllDICOMs" / file_name,
            pixels << (bits - 12),
            uid_seed=f"inbreast {seed} {number}",
            syntax=syntax,
            bits_stored=bits,
            attributes={
                "PresentationIntentType": "FOR PRESENTATION",
                "BodyPartExamined": "BREAST",
                "ImagerPixelSpacing": [view.spacing_mm] * 2,
                "WindowCenter": 2 ** (bits - 1),
                "WindowWidth": 2**bits,
            },
        )
        if annotated:
            regions = _regions(view, dot, patient)
            (release / "AllXML" / f"{number}.xml").write_bytes(_annotation(view, regions))
        # One density of the release is a blank.
        density = " " if image == 8 else str(view.density)
        row = ("removed", "removed", view.laterality, name, date, number, density)
        box = (*view.outline.min(axis=0), *view.outline.max(axis=0))
        truth = (file_name, token, int(view.malignant), f"{view.latent:.6f}", view.kind)
        results.append(
            ((*row, _birads(view, annotated)), (*truth, *(f"{value:.2f}" for value in box)))
        )
    return results


def _birads(view: PhantomView, annotated: bool) -> str:
    """The assessment that a reader might give: 1..3 for benign, 4a..6 for malignant patients."""
    if not view.malignant:
        if not annotated:
            return "1"
        return "2" if view.latent < 0.3 else "3"
    if not annotated:
        return "6"
    grades = ("4a", "4b", "4c", "5", "6")
    return grades[int(np.searchsorted((0.6, 0.7, 0.8, 0.92), view.latent))]


def _dot(view: PhantomView) -> np.ndarray:
    """A place for a single benign calcification near the lesion: 1 or 2 points (x, y)."""
    centre = view.outline.mean(axis=0)
    inwards = np.array([-1.0 if view.laterality == "L" else 1.0, 0.0])
    place = np.round(centre - inwards * 60)
    height, width = view.pixels.shape
    place = np.clip(place, 2, (width - 3, height - 3))
    return (
        np.array([place]) if view.patient % 8 == 1 else np.array([place, place + np.array([1, 0])])
    )


def _with_marks(view: PhantomView, dot: np.ndarray | None, *, marker: bool) -> np.ndarray:
    """The pixels with a dot and a burnt-in marker drawn in."""
    pixels = view.pixels.copy()
    if dot is not None:
        for x, y in dot.astype(int):
            pixels[y, x] = min(int(pixels[y, x]) + 500, 4095)
    if marker:
        # The upper corner opposite the chest wall is air in every view.
        x = int(0.84 * pixels.shape[1]) if view.laterality == "L" else 8
        text = f"{view.laterality}{view.view}"
        letters = np.zeros(pixels.shape, np.uint8)
        cv2.putText(letters, text, (x, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 1, 2)
        pixels[letters > 0] = 3800
    return pixels


def _regions(
    view: PhantomView, dot: np.ndarray | None, patient: int
) -> list[tuple[str, int, np.ndarray]]:
    """Regions of interest of one image: (name, OsiriX type, points)."""
    name = "Mass" if view.kind == "mass" else "Cluster"
    regions = [(name, _POLYGON, view.outline)]
    if dot is not None:
        regions.append(("Calcification", _POINT, dot))
    if view.view == "MLO" and patient % 3 == 0:
        muscle = np.array([(-4.2, -3.1), (120.0, -3.1), (70.0, 200.0), (-4.2, 380.0)])
        if view.laterality == "R":
            muscle = muscle * (-1, 1) + (view.pixels.shape[1] - 1, 0)
        regions.insert(0, ("Pectoral Muscle", _POLYGON, muscle))
    return regions


def _annotation(view: PhantomView, regions: list[tuple[str, int, np.ndarray]]) -> bytes:
    """An OsiriX property list of the regions."""
    rois = []
    for index, (name, kind, points) in enumerate(regions):
        x0, y0 = np.maximum(points.min(axis=0), 0).astype(int)
        x1, y1 = np.maximum(points.max(axis=0), 0).astype(int) + 1
        inside = view.pixels[y0:y1, x0:x1]
        area = cv2.contourArea(points.astype(np.float32)) * (view.spacing_mm / 10) ** 2
        rois.append(
            {
                "Area": float(area),
                "Center": _point(points.mean(axis=0)),
                "Dev": float(inside.std()),
                "IndexInImage": index,
                "Max": float(inside.max()),
                "Mean": float(inside.mean()),
                "Min": float(inside.min()),
                "Name": name,
                "NumberOfPoints": len(points),
                "Point_mm": [_point((*(p * view.spacing_mm), 0.0)) for p in points],
                "Point_px": [_point(p) for p in points],
                "Total": float(inside.sum()),
                "Type": kind,
            }
        )
    return plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]})


def _point(coordinates: np.ndarray | tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:f}" for value in coordinates) + ")"


def _write_csv(
    path: Path, rows: tuple[CsvRow, ...], *, delimiter: str, lineterminator: str
) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=lineterminator).writerows(rows)
