"""Lesion boxes: two corners in pixels of the stored image, as tables and requests give them."""

import math

Box = tuple[float, float, float, float]
CORNERS = ("x0", "y0", "x1", "y1")
RULE = "0 ≤ x0 < x1 and 0 ≤ y0 < y1"


def is_box(x0: float, y0: float, x1: float, y1: float) -> bool:
    """Whether the corners hold to `RULE` and are finite; NaN does not."""
    return 0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf
