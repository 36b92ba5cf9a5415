"""Lesion boxes of CBIS-DDSM, from its segmentation masks.

Every lesion comes with two files, a binary mask the size of the mammogram and a crop around the
lesion, and neither file names nor the tables say reliably which is which. The content does: a mask
has two values and nothing in between. Masks may have another size than their image, so the box is
carried over by the ratio of the two sizes, which is what resizing the mask would do.

A full release has 3,568 masks of about 15 MB. They are decoded in `decode_pool`'s limited
processes, once: boxes are kept in the cache under hashes of the files' names, sizes and times.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sgc_experiments.data import codestream
from sgc_experiments.data.boxes import Box
from sgc_experiments.data.decode_pool import run_isolated
from sgc_experiments.data.dicom import read_bytes, read_stored
from sgc_experiments.data.dicom_header import MAX_SIDE, silenced
from sgc_experiments.data.pixel_data import decode_jpeg_file
from sgc_experiments.data.rejection import PASSING, Reason, RejectedFile

log = logging.getLogger("sgc_experiments.data")

JPEG_START = b"\xff\xd8"
HEAD_BYTES = 1 << 16  # a JPEG's size stands near its beginning
GREY_SHARE = 0.02  # of a mask's pixels may be neither black nor white: JPEG blurs its outline
CACHE_NAME = "cbis_ddsm_lesions.json"


class LesionMask(NamedTuple):
    """A lesion: the image that it is drawn on and the files of which one is its mask."""

    image: Path
    candidates: tuple[Path, ...]


def lesion_boxes(
    lesions: Iterable[LesionMask], *, cache_dir: Path | None, workers: int, progress: bool
) -> dict[LesionMask, Box]:
    """The box of every lesion that has a readable, non-empty mask, in pixels of its image.

    Args:
        lesions: what to look for.
        cache_dir: where known boxes are kept, by file name, size and time; None keeps none.
        workers: decoding processes; 0 takes one per core.
        progress: whether to show a bar.
    """
    keys = {lesion: _cache_key(lesion) for lesion in lesions if lesion.candidates}
    boxes = _load(cache_dir)
    unknown = [lesion for lesion, key in keys.items() if key not in boxes]
    title = "lesion masks" if progress else None
    for position, box in run_isolated(find_box, unknown, workers=workers, progress=title):
        # A rejection may be this machine's (memory, time), so it is not remembered.
        if not isinstance(box, RejectedFile):
            boxes[keys[unknown[position]]] = box
    if unknown and cache_dir is not None:
        _save(boxes, cache_dir)
    return {lesion: box for lesion, key in keys.items() if (box := boxes.get(key)) is not None}


def find_box(lesion: LesionMask) -> Box | None:
    """The bounding box (x0, y0, x1, y1) of a lesion's mask in pixels of its image; None if none.

    Several masks (a copy, say) count as one: the largest is taken.

    Raises:
        RejectedFile: the image's size cannot be read, or a file that may be the mask cannot be for
            the time being.
    """
    masks = [mask for path in lesion.candidates if (mask := _read_mask(path)) is not None]
    if not masks:
        return None
    mask = max(masks, key=lambda array: array.size)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    height, width = image_size(lesion.image)
    x_scale, y_scale = width / mask.shape[1], height / mask.shape[0]
    return (
        float(columns[0] * x_scale),
        float(rows[0] * y_scale),
        float((columns[-1] + 1) * x_scale),
        float((rows[-1] + 1) * y_scale),
    )


def _read_mask(path: Path) -> np.ndarray | None:
    """(H, W) bool if the file is a mask that marks something; None for a crop or a broken file.

    Raises:
        RejectedFile: it may be a mask, but cannot be read for the time being.
    """
    try:
        data = read_bytes(path)
        pixels = decode_jpeg_file(data) if data.startswith(JPEG_START) else read_stored(data)[0]
    except RejectedFile as rejection:
        if rejection.reason in PASSING:
            raise
        return None
    low, high = int(pixels.min()), int(pixels.max())
    eighth = (high - low) // 8
    white = pixels > (low + high) // 2
    grey = np.count_nonzero((pixels > low + eighth) & (pixels < high - eighth))
    return white if low < high and grey <= GREY_SHARE * pixels.size else None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file, from its header alone.

    Raises:
        RejectedFile: it does not say, or no decoder would be asked to read it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if head.startswith(JPEG_START):
            size = codestream.jpeg_size(head)
            height, width = size.rows, size.columns
        else:
            height, width = _dicom_size(path)
    except OSError:
        raise RejectedFile(Reason.UNREADABLE) from None
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise RejectedFile(Reason.IMAGE_SIZE)
    return height, width


def _dicom_size(path: Path) -> tuple[int, int]:
    """(Rows, Columns) of a DICOM file; its pixels are not read."""
    with silenced():
        try:
            # Deflated headers expand without bound while they are parsed.
            if read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
                raise RejectedFile(Reason.TRANSFER_SYNTAX)
            tags = dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(tags.Rows), int(tags.Columns)
        except (RejectedFile, OSError, MemoryError):
            raise
        # A broken header can raise nearly anything, and every message quotes values.
        except Exception:
            raise RejectedFile(Reason.BAD_HEADER) from None


def _cache_key(lesion: LesionMask) -> str:
    """A hash that changes with any of the files; no path can be read from it."""
    facts = []
    for path in (lesion.image, *lesion.candidates):
        status = path.stat()
        facts.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _load(cache_dir: Path | None) -> dict[str, Box | None]:
    """The boxes of an earlier reading; none if there is no cache or it is damaged."""
    if cache_dir is None:
        return {}
    try:
        stored = json.loads((cache_dir / CACHE_NAME).read_text())
        return {key: box and tuple(map(float, box)) for key, box in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(boxes: dict[str, Box | None], cache_dir: Path) -> None:
    """Replace the cache file in one step, so that no other process reads half of it."""
    partial = cache_dir / f".{CACHE_NAME}-{os.getpid()}"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(boxes))
        partial.replace(partial.with_name(CACHE_NAME))
    except OSError:
        partial.unlink(missing_ok=True)
        log.warning("CBIS-DDSM: the cache folder cannot be written; lesion boxes are not kept")
