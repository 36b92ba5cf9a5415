"""VinDr-Mammo 1.0.0 (PhysioNet) -> the image table.

Nguyen et al., "VinDr-Mammo: a large-scale benchmark dataset for computer-aided diagnosis in
full-field digital mammography", Scientific Data 10:277 (2023). What the release asks of its reader:

- Patients are not released; the study stands for the patient.
- The label is a reader's opinion, not pathology: BI-RADS 4 and 5 of the *breast* count as
  malignant. Findings below BI-RADS 3 have no box, so most benign images have no lesion.
- (study, side, view) need not be unique; the image id is.
- Identifiers are MD5 digests. They name the files, which is why they are checked to be just that.

Windows, padding and photometric interpretation are read from the DICOM headers by `dicom`;
`metadata.csv` repeats them and serves here as a check of image sizes, sides and views.
"""

from __future__ import annotations

import ast
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.problems import Problems, read_csv_text, row_numbers
from sgc_experiments.data.schema import COLUMNS, check_table, hashed
from sgc_experiments.errors import UserError

log = logging.getLogger("sgc_experiments.data")

SALT = "vindr_mammo"
BREAST, FINDINGS, METADATA = (
    "breast-level_annotations.csv",
    "finding_annotations.csv",
    "metadata.csv",
)
TABLES = (BREAST, FINDINGS, METADATA)
IMAGE_FOLDER = "images"
SEARCH_DEPTH = 5  # wget lays PhysioNet files at physionet.org/files/vindr-mammo/1.0.0
SPLITS = {"training": "train", "test": "test"}
DENSITIES = {"DENSITY A": "1", "DENSITY B": "2", "DENSITY C": "3", "DENSITY D": "4"}
BIRADS = {f"BI-RADS {grade}": grade for grade in range(1, 6)}
MALIGNANT_FROM = 4
MD5 = r"[0-9a-f]{32}"
CATEGORIES_LENGTH = 1000  # characters; the longest released list is far shorter
BREAST_COLUMNS = (
    "study id",
    "image id",
    "laterality",
    "view position",
    "height",
    "width",
    "breast birads",
    "breast density",
    "split",
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FINDING_COLUMNS = ("image id", "finding categories", "finding birads", *CORNERS)


def read_table(data_dir: Path) -> pd.DataFrame:
    """Read a VinDr-Mammo release in or below `data_dir` into the image table (`schema.COLUMNS`).

    Raises:
        UserError: no release there, or tables that contradict the files or each other; all of it
            listed by row number.
    """
    root = _find_release(Path(os.path.abspath(data_dir)))
    problems = Problems("VinDr-Mammo")
    breast = read_csv_text(root / BREAST)
    findings = read_csv_text(root / FINDINGS)
    metadata = read_csv_text(root / METADATA)
    for name, table, columns in (
        (BREAST, breast, BREAST_COLUMNS),
        (FINDINGS, findings, FINDING_COLUMNS),
        (METADATA, metadata, ("sop instance uid",)),
    ):
        if absent := [column for column in columns if column not in table.columns]:
            problems.add(f"{name}: no column {', '.join(absent)}")
        elif table.empty:
            problems.add(f"{name}: the table is empty")
    problems.raise_if_any()

    breast["height"] = pd.to_numeric(breast["height"], errors="coerce")
    breast["width"] = pd.to_numeric(breast["width"], errors="coerce")
    for side in CORNERS:
        findings[side] = pd.to_numeric(findings[side], errors="coerce").astype(float)
    findings["has box"] = [_is_finding(text) for text in findings["finding categories"]]
    breast["path"] = _paths(root, breast)
    _check_breast_table(breast, problems)
    _check_findings(findings, breast, problems)
    _check_metadata(metadata, breast, problems)
    problems.raise_if_any()

    lesions = _lesions(findings, breast)
    table = pd.DataFrame(
        [_image_row(row, lesions.get(row["image id"], [])) for row in breast.to_dict("records")],
        columns=list(COLUMNS),
    )
    return check_table(table, "the VinDr-Mammo release")


def _find_release(data_dir: Path) -> Path:
    """The shallowest folder in or below `data_dir` that holds the three tables and the images."""
    incomplete, closed = "", 0
    level = [data_dir]
    for _ in range(SEARCH_DEPTH):
        for folder in level:
            missing = [name for name in TABLES if not os.path.isfile(folder / name)]
            if not os.path.isdir(folder / IMAGE_FOLDER):
                missing.append(f"{IMAGE_FOLDER}/")
            if not missing:
                return folder
            if BREAST not in missing:
                incomplete = incomplete or f" ({', '.join(missing)} missing)"
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except PermissionError:
                closed += 1
            except OSError:
                continue
            else:
                below += [Path(e.path) for e in entries if e.is_dir() and e.name != IMAGE_FOLDER]
        level = below
    unread = (
        f" ({closed} folder(s) there cannot be read; check their permissions)" if closed else ""
    )
    raise UserError(
        f"No VinDr-Mammo release in {data_dir}{incomplete}{unread}: {', '.join(TABLES)} and "
        f"{IMAGE_FOLDER}/ should lie there or below; download VinDr-Mammo 1.0.0 from PhysioNet "
        "(credentialed access) and set data_dir, or use dataset=phantom, which needs nothing."
    )


def _paths(root: Path, breast: pd.DataFrame) -> list[str]:
    """The file of every row, "" where an identifier is no MD5 digest or the file does not exist."""
    digests = breast["study id"].str.fullmatch(MD5) & breast["image id"].str.fullmatch(MD5)
    paths = []
    for study, image, valid in zip(breast["study id"], breast["image id"], digests, strict=True):
        path = root / IMAGE_FOLDER / study / f"{image}.dicom"
        paths.append(str(path) if valid and path.is_file() else "")
    return paths


def _is_finding(text: str) -> bool | None:
    """Whether a list literal of categories names a finding; None if it is no such list."""
    if len(text) > CATEGORIES_LENGTH:
        return None
    try:
        categories = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(categories, list) or not categories:
        return None
    return categories != ["No Finding"]


def _check_breast_table(breast: pd.DataFrame, problems: Problems) -> None:
    """Note the rows of the breast-level table that cannot be used as they are."""
    splits_of_study = breast.groupby("study id")["split"].transform("nunique")
    for what, wrong in (
        ("study_id is not an MD5 digest", ~breast["study id"].str.fullmatch(MD5)),
        ("image_id is not an MD5 digest", ~breast["image id"].str.fullmatch(MD5)),
        ("image_id occurs twice", breast["image id"].duplicated()),
        ("laterality is neither L nor R", ~breast["laterality"].isin(["L", "R"])),
        ("view_position is neither CC nor MLO", ~breast["view position"].isin(["CC", "MLO"])),
        ("breast_birads is not BI-RADS 1 to 5", ~breast["breast birads"].isin(BIRADS)),
        ("split is neither training nor test", ~breast["split"].isin(SPLITS)),
        ("the study is in both training and test", splits_of_study > 1),
        (
            "height or width is not a positive number",
            ~((breast["height"] > 0) & (breast["width"] > 0)),
        ),
        ("the image is not on disk", breast["path"] == ""),
    ):
        problems.add_rows(BREAST, what, row_numbers(wrong))


def _check_findings(findings: pd.DataFrame, breast: pd.DataFrame, problems: Problems) -> None:
    """Note the findings that cannot be read or belong to no image."""
    boxes = findings[list(CORNERS)].to_numpy()
    boxed = findings["has box"].eq(True)
    degenerate = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    graded = findings["finding birads"].isin([*BIRADS, ""])
    for what, wrong in (
        ("finding_categories is not a list of names", findings["has box"].isna()),
        ("finding_birads is neither empty nor BI-RADS 1 to 5", ~graded),
        ("the finding has no box with xmin < xmax and ymin < ymax", boxed & degenerate),
        (f"image_id is not in {BREAST}", ~findings["image id"].isin(breast["image id"])),
    ):
        problems.add_rows(FINDINGS, what, row_numbers(wrong))


def _check_metadata(metadata: pd.DataFrame, breast: pd.DataFrame, problems: Problems) -> None:
    """Note the images whose size, side or view the two tables give differently."""
    described = metadata.drop_duplicates("sop instance uid").set_index("sop instance uid")
    described = described.reindex(breast["image id"]).set_axis(breast.index)
    for column, ours in (
        ("rows", "height"),
        ("columns", "width"),
        ("image laterality", "laterality"),
        ("view position", "view position"),
    ):
        if column not in described:
            continue
        theirs = described[column].replace("", np.nan)
        if ours in ("height", "width"):
            theirs = pd.to_numeric(theirs, errors="coerce")
        differs = theirs.notna() & (theirs != breast[ours])
        what = f"{ours.replace(' ', '_')} is not what {METADATA} says"
        problems.add_rows(BREAST, what, row_numbers(differs))


def _lesions(findings: pd.DataFrame, breast: pd.DataFrame) -> dict[str, list[tuple[int, Box]]]:
    """For every image with findings, their BI-RADS grade (0 if none) and box, clipped to it.

    A box that lies outside of its image altogether is left out and counted.
    """
    sizes = {
        image: (float(width), float(height))
        for image, width, height in zip(
            breast["image id"], breast["width"], breast["height"], strict=True
        )
    }
    lesions: dict[str, list[tuple[int, Box]]] = {}
    outside = 0
    for row in findings[findings["has box"].eq(True)].to_dict("records"):
        width, height = sizes[row["image id"]]
        x0, x1 = (min(max(row[name], 0.0), width) for name in ("xmin", "xmax"))
        y0, y1 = (min(max(row[name], 0.0), height) for name in ("ymin", "ymax"))
        if x1 <= x0 or y1 <= y0:
            outside += 1
            continue
        grade = BIRADS.get(row["finding birads"], 0)
        lesions.setdefault(row["image id"], []).append((grade, (x0, y0, x1, y1)))
    if outside:
        log.warning("VinDr-Mammo: %d findings lie outside of their image and are left out", outside)
    return lesions


def _image_row(row: dict[str, Any], lesions: list[tuple[int, Box]]) -> dict[str, object]:
    """One row of the image table."""
    grade = BIRADS[row["breast birads"]]
    label = int(grade >= MALIGNANT_FROM)
    ordered = sorted(
        (int(finding >= MALIGNANT_FROM) != label, -(box[2] - box[0]) * (box[3] - box[1]), box)
        for finding, box in lesions
    )
    return {
        "image_id": hashed("img", row["image id"], salt=SALT),
        "patient": hashed("pat", row["study id"], salt=SALT),
        "exam": hashed("exam", row["study id"], salt=SALT),
        "laterality": row["laterality"],
        "view": row["view position"],
        "label": label,
        "assessment": str(grade),
        "density": DENSITIES.get(row["breast density"], ""),
        "official_split": SPLITS[row["split"]],
        "path": row["path"],
        "lesions": tuple(dict.fromkeys(box for _, _, box in ordered)),
    }
