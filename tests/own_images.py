"""A folder of a user's own images with a table: small half discs whose blobs tell the class."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.dicom_files import breast, dicom_bytes

CLASSES = ("cyst", "fibroadenoma", "carcinoma")
_BLOBS = {"cyst": (14, 9, 700), "fibroadenoma": (24, 6, 1300), "carcinoma": (34, 3, 2600)}
BOX = (2, 4, 44, 60)


def picture(label: str, seed: int) -> np.ndarray:
    """(64, 48) uint16 of 12 bits: a breast with a blob at the place of the class."""
    image = breast(64, 48, seed=seed, level=1200).astype(np.float64)
    row, width, height = _BLOBS[label]
    y, x = np.mgrid[:64, :48]
    distance = (y - row - seed % 3) ** 2 + (x - 14 - seed % 5) ** 2
    image += (image > 0) * height * np.exp(-distance / width**2)
    return np.clip(image, 0, 4095).astype(np.uint16)


def encode(image: np.ndarray, suffix: str) -> bytes:
    """A file of that kind: .dcm, .png, .tif or .npy."""
    if suffix == ".dcm":
        return dicom_bytes(image)
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, image.astype(np.float32) / 4095)
    else:
        Image.fromarray(image).save(buffer, {".png": "PNG", ".tif": "TIFF"}[suffix])
    return buffer.getvalue()


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write a CSV table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_own_images(folder: Path, *, patients: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write `patients` patients of each class, one image each, in all four formats; the table."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(patients * len(classes)):
        label = classes[number % len(classes)]
        name = f"image_{number:03}{('.dcm', '.png', '.tif', '.npy')[number // len(classes) % 4]}"
        (folder / name).write_bytes(encode(picture(label, number), Path(name).suffix))
        box = dict(zip(("x0", "y0", "x1", "y1"), BOX, strict=True))
        rows.append({"path": name, "patient": f"site-{number}", "label": label, **box})
    return write_table(folder / "images.csv", rows)
