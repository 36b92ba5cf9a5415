"""One file → one prepared image: what a decode worker is asked to do.

Imports neither pandas nor torch, so that workers start quickly.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.dicom import decode_file, read_image
from sgc_experiments.data.preprocess import PreprocessSettings, preprocess


class PrepareTask(NamedTuple):
    """A file, the lesion that stands for it, and what to make of it."""

    path: str
    lesion: Box | None
    settings: PreprocessSettings


class BytesTask(NamedTuple):
    """A file that is no file yet, the lesion that stands for it, and what to make of it."""

    data: bytes
    lesion: Box | None
    settings: PreprocessSettings


class PreparedImage(NamedTuple):
    """(S, S) uint16, the lesion box (4,) in its pixels, and the SHA-256 of the file."""

    pixels: np.ndarray
    box: np.ndarray
    sha256: str


def prepare_file(task: PrepareTask) -> PreparedImage:
    """Read and prepare one file.

    Raises:
        RejectedFile: with the reason.
    """
    cv2.setNumThreads(1)  # there is a worker per core already
    image, sha256 = read_image(Path(task.path), task.settings.box_to_cut(task.lesion))
    pixels, box = preprocess(image, task.lesion, task.settings)
    return PreparedImage(pixels, box, sha256)


def prepare_bytes(task: BytesTask) -> PreparedImage:
    """Decode and prepare a file that came over a network.

    Raises:
        RejectedFile: with the reason.
    """
    cv2.setNumThreads(1)
    image = decode_file(task.data, task.settings.box_to_cut(task.lesion))
    pixels, box = preprocess(image, task.lesion, task.settings)
    return PreparedImage(pixels, box, hashlib.sha256(task.data).hexdigest())
