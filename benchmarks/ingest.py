"""Reading and preparing mammograms, against a plain loop of pydicom and scikit-image.

Both decode the same files of INbreast's size, apply LUT and window, find the breast, crop, resize
to 384 pixels and equalise the contrast locally. Time is processor time, so that it is per core
whatever else runs; ours includes the isolated worker process and its messages.

speedup_per_core     images per second of one core, ours over the loop's
peak_rss_mb          largest resident memory of a process that indexes, prepares and reads through
                     20,000 images (MB of 1,000,000 bytes)
"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from scipy.ndimage import binary_fill_holes
from skimage.exposure import equalize_adapthist
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import disk, opening
from skimage.transform import resize

from benchmarks.report import Result, note, run
from sgc_experiments.data.decode_pool import run_isolated
from sgc_experiments.data.phantom.dicom_writer import write_dicom
from sgc_experiments.data.phantom.inbreast_layout import write_inbreast
from sgc_experiments.data.phantom.render import render_patient
from sgc_experiments.data.prepare import PrepareTask, prepare_file
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.rejection import RejectedFile

_SETTINGS = PreprocessSettings(input="whole", image_size=384, clahe=True)
_LOAD = """
import sys
from pathlib import Path
from benchmarks.memory import peak_megabytes
from sgc_experiments.data import load_dataset

dataset = load_dataset(
    "inbreast", data_dir=Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), input="whole",
    image_size=128, progress=False,
)
for k in range(0, len(dataset.images), 256):
    dataset.images[k : k + 256].sum()
print(len(dataset.images), peak_megabytes())
"""


class Size(NamedTuple):
    """Files that are timed, the height of them, and the numbers of images that are loaded."""

    files: int
    height: int
    loaded: tuple[int, ...]


QUICK = Size(files=4, height=3328, loaded=(100, 400))
FULL = Size(files=16, height=3328, loaded=(2_000, 20_000))


def measure(size: Size) -> Result:
    """Time both on the same files, then load releases of growing size."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = _write_files(Path(scratch), size)
        plain, isolated = _plain_seconds(paths), _isolated_seconds(paths)
        note(f"per image and core: plain loop {plain:.3f} s, ours {isolated:.3f} s")
        for count in size.loaded:
            count, megabytes = _load(Path(scratch) / str(count), count)
            note(f"{count} images: {megabytes:.0f} MB at most")
    return {"speedup_per_core": plain / isolated, "peak_rss_mb": megabytes}


def _write_files(folder: Path, size: Size) -> list[Path]:
    """Views of the phantom, enlarged to a detector's size."""
    views = [
        view
        for patient in range(size.files)
        for view in render_patient(patient, seed=0, difficulty="standard")
    ]
    paths = []
    for number, view in enumerate(views[: size.files]):
        width = size.height * view.pixels.shape[1] // view.pixels.shape[0]
        pixels = cv2.resize(view.pixels, (width, size.height), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{number}.dcm"
        window = {"WindowCenter": 2048, "WindowWidth": 4096}
        write_dicom(path, np.minimum(pixels, 4095), uid_seed=path.name, attributes=window)
        paths.append(path)
    return paths


def prepare_plainly(path: Path) -> np.ndarray:
    """What anybody would write first; (384, 384) float64 in [0, 1]."""
    dataset = pydicom.dcmread(path)
    image = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    image = image.astype(float)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() - image
    image = (image - image.min()) / (image.max() - image.min())
    regions = label(opening(image > threshold_otsu(image) / 4, disk(5)))
    largest = max(regionprops(regions), key=lambda region: region.area)
    breast = binary_fill_holes(regions == largest.label)
    top, left, bottom, right = largest.bbox
    image = np.where(breast, image, 0)[top:bottom, left:right]
    if breast[:, : breast.shape[1] // 2].sum() < breast.sum() / 2:
        image = image[:, ::-1]
    side = _SETTINGS.image_size
    scale = side / max(image.shape)
    shape = tuple(round(length * scale) for length in image.shape)
    square = np.zeros((side, side))
    square[: shape[0], : shape[1]] = resize(image, shape, anti_aliasing=True)
    return equalize_adapthist(square)


def _plain_seconds(paths: list[Path]) -> float:
    """Processor seconds per image after the first, which loads what is loaded on first use."""
    prepare_plainly(paths[0])
    started = time.process_time()
    for path in paths[1:]:
        prepare_plainly(path)
    return (time.process_time() - started) / len(paths[1:])


def _isolated_seconds(paths: list[Path]) -> float:
    """The same for a worker and its parent."""

    def spent(some: list[Path]) -> float:
        before = _processor_seconds()
        tasks = [PrepareTask(str(path), None, _SETTINGS) for path in some]
        for _, result in run_isolated(prepare_file, tasks, workers=1):
            if isinstance(result, RejectedFile):
                raise result
        return _processor_seconds() - before

    return (spent(paths) - spent(paths[:1])) / len(paths[1:])


def _processor_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def _load(folder: Path, count: int) -> tuple[int, float]:
    """Images loaded and peak memory in MB, in a process of its own."""
    release = _many_images(folder, count)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(release), str(folder / "cache")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, megabytes = done.stdout.split()
    shutil.rmtree(folder)
    return int(loaded), float(megabytes)


def _many_images(folder: Path, count: int) -> Path:
    """A phantom release whose patients are listed again and again under other names.

    Every file is its own, of half a megabyte: no two patients may have the same one. Copies differ
    in the preamble, which says nothing about the image.
    """
    release = write_inbreast(
        folder / "phantom", patients=10, seed=0, difficulty="standard", workers=1, progress=False
    )
    table = release / "INbreast.csv"
    header, *rows = list(csv.reader(table.read_text().splitlines(), delimiter=";"))
    column = header.index("File Name")
    files = {path.name.split("_")[0]: path for path in (release / "AllDICOMs").iterdir()}
    contents = {path: path.read_bytes() for path in files.values()}
    copies = list(rows)
    for number in range(len(rows), count):
        row = list(rows[number % len(rows)])
        source = files[row[column]]
        name, patient, *rest = source.name.split("_")
        row[column] = str(30_000_000 + number)
        patient = f"{int(patient, 16) ^ number // len(rows):016x}"
        copy = f"{number:0128d}".encode() + contents[source][128:]
        source.with_name("_".join([row[column], patient, *rest])).write_bytes(copy)
        outline = release / "AllXML" / f"{name}.xml"
        if outline.exists():
            os.link(outline, outline.with_name(f"{row[column]}.xml"))
        copies.append(row)
    text = "\r\n".join(";".join(row) for row in [header, *copies]) + "\r\n"
    table.write_text(text)
    return release


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
