"""Lesion outlines from OsiriX region files, which INbreast distributes as XML property lists."""

import math
import plistlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.rejection import Reason, RejectedFile

MAX_FILE_BYTES = 16 << 20

_NUMBER = r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*"
_POINT = re.compile(rf"[({{]{_NUMBER},{_NUMBER}[)}}]")
_DOT = 2  # regions of so few points mark a place, not an outline


def read_regions(path: Path) -> tuple[Box, ...]:
    """Read the bounding boxes of the lesions that an OsiriX file outlines.

    Entity declarations, which make XML expand, are refused by `plistlib`.

    Returns:
        Boxes (x0, y0, x1, y1) in pixels of the image, the largest first, clipped at the image's
        near edges. Dots and pectoral muscles are left out.

    Raises:
        RejectedFile: not such a file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RejectedFile(Reason.BAD_ANNOTATION)
        content = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
        boxes = list(_boxes(content))
    # plistlib raises all of these on malformed files, and so does walking an unexpected shape.
    except (OSError, ExpatError, ValueError, TypeError, LookupError, AttributeError):
        raise RejectedFile(Reason.BAD_ANNOTATION) from None
    return tuple(sorted(boxes, key=_by_area))


def _by_area(box: Box) -> tuple[float, Box]:
    x0, y0, x1, y1 = box
    return -(x1 - x0) * (y1 - y0), box


def _boxes(content: dict[str, Any]) -> Iterator[Box]:
    for image in content["Images"]:
        for region in image["ROIs"]:
            points = [_point(text) for text in region["Point_px"]]
            if len(points) <= _DOT or "pectoral" in str(region.get("Name", "")).lower():
                continue
            across, down = zip(*points, strict=True)
            box = (min(across), min(down), max(across), max(down))
            if box[0] < box[2] and box[1] < box[3]:
                yield box


def _point(text: str) -> tuple[float, float]:
    """Parse "(x, y)"; negative coordinates become 0."""
    match = _POINT.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a point")
    x, y = float(match[1]), float(match[2])
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError("not a point")
    return max(x, 0.0), max(y, 0.0)
