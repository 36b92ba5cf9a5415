"""What each step of the preparation makes of a file, for people to look at.

The pictures come from the very functions that prepare the images (`dicom`, `preprocess`), not from
a drawing of them. Runs in a decode worker, so it imports neither pandas nor torch.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sgc_experiments.data.dicom import calibrate, decode_file, read_bytes, read_stored
from sgc_experiments.data.dicom_header import is_dicom
from sgc_experiments.data.prepare import PrepareTask
from sgc_experiments.data.preprocess import (
    FULL_RANGE,
    chest_wall_on_right,
    clip_box,
    preprocess,
    tissue_mask,
)

THUMBNAIL_SIDE = 200


class Stages(NamedTuple):
    """Grey pictures in [0, 1] of at most `THUMBNAIL_SIDE` pixels a side, in the order of work.

    Attributes:
        stored: the stored values, stretched to their range; for other files the decoded image.
        calibrated: after LUT, padding, window and inversion.
        breast: what the breast mask keeps.
        prepared: what a model sees, (S, S).
        box: the lesion in the pixels of `prepared`, (4,); NaN where there is none.
    """

    stored: np.ndarray
    calibrated: np.ndarray
    breast: np.ndarray
    prepared: np.ndarray
    box: np.ndarray


def stages_of_file(task: PrepareTask) -> Stages:
    """Prepare one file and keep a picture of each step.

    Raises:
        RejectedFile: with the reason.
    """
    cv2.setNumThreads(1)  # there is a worker per core already
    data = read_bytes(Path(task.path))
    cut = task.settings.box_to_cut(task.lesion)
    if is_dicom(data):
        stored, header, dataset = read_stored(data)
        image = calibrate(stored, header, dataset, cut)
    else:
        stored = image = decode_file(data, cut)
    mask = tissue_mask(image, cut)
    breast = np.where(mask, image, 0)
    if chest_wall_on_right(mask):
        breast = breast[:, ::-1]
    lesion = clip_box(task.lesion, image.shape) if task.lesion else None
    prepared, box = preprocess(image, lesion, task.settings)
    return Stages(
        _thumbnail(_stretched(stored)),
        _thumbnail(image / FULL_RANGE),
        _thumbnail(breast / FULL_RANGE),
        prepared / FULL_RANGE,
        box,
    )


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1.0)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    shrink = min(1.0, THUMBNAIL_SIDE / max(image.shape))
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    return cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)
