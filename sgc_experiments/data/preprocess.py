"""From a calibrated mammogram to the square image that a model sees.

Every step is a pure function of arrays. Coordinates are continuous pixel edges: pixel (i, j) covers
[j, j+1) × [i, i+1), so a box (x0, y0, x1, y1) keeps its meaning under cropping, mirroring and
scaling, and is carried through all of them.

Two inputs:

- `whole`: the breast, background set to 0, chest wall to the left, aspect kept.
- `roi`: a square around one lesion with context. Its intensities are mapped linearly from the
  percentiles of the *breast*, not of the crop: exposure and vendor (gain and offset) are removed,
  while a lesion of half the physical contrast still shows half the contrast. Stretching every crop
  to its own range would turn faint lesions and plain noise into strong ones. A box that covers
  the whole image says that the image is a crop already: it gets no more context and is not
  mirrored, and its own percentiles have to stand in for those of the breast.
"""

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from sgc_experiments.data.boxes import Box
from sgc_experiments.data.rejection import Reason, RejectedFile

FULL_RANGE = 65535

_MASK_SIDE = 512  # the mask is found on a thumbnail; finer detail does not change the outline
_MASK_LEVEL = 0.05  # of the way from air to bright tissue: low, because fatty skin is dark
_MASK_OPENING = 7  # thumbnail pixels: removes scanner borders and cuts off labels
_MASK_SKIN = 3  # thumbnail pixels added all around, so that the skin line is kept
_RIM = 13  # thumbnail pixels: percentiles are taken so far (half of it) inside the mask
_SMALLEST_BREAST = 0.01  # of the image
_BREAST_PERCENTILES = (0.5, 99.5)
_HEADROOM = 0.25  # of the percentile range, kept above it for calcifications
_ROOM = 4.0  # percentile ranges that a file without a window keeps until its crop is stretched


@dataclass(frozen=True)
class PreprocessSettings:
    """How images are prepared; stored with every model.

    Attributes:
        input: "whole" or "roi".
        image_size: side of the square output in pixels.
        margin: kept around the breast, as a fraction of its longer side.
        context: side of the lesion crop, as a multiple of the lesion's longer side.
        minimum_crop: least side of the lesion crop, as a fraction of the image's longer side.
            About 14 mm on a full-field mammogram; a pointlike calcification needs surroundings.
        clahe: whether contrast-limited adaptive histogram equalisation ends the chain.
    """

    input: Literal["whole", "roi"]
    image_size: int
    margin: float = 0.02
    context: float = 1.75
    minimum_crop: float = 0.05
    clahe: bool = False

    def as_dict(self) -> dict[str, str | int | float | bool]:
        """Return the settings as JSON-able values."""
        return asdict(self)

    def box_to_cut(self, lesion: Box | None) -> Box | None:
        """Return the lesion that an image is cut out by; None if it stays whole."""
        return lesion if self.input == "roi" else None


class Window(NamedTuple):
    """A rectangle of whole pixels; it may reach beyond the image."""

    x0: int
    y0: int
    x1: int
    y1: int


def preprocess(
    image: np.ndarray, lesion: Box | None, settings: PreprocessSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Prepare one mammogram.

    Args:
        image: (H, W) uint16, calibrated, bright = dense, 0 = padding.
        lesion: the box that stands for the image, in its pixels; needed for `roi`.
        settings: what to make of it.

    Returns:
        (S, S) uint16 over the full range, and the lesion box (4,) float32 in its pixels, NaN
        where there is none.

    Raises:
        RejectedFile: blank, no breast, or no lesion inside the image.
    """
    mask = tissue_mask(image, settings.box_to_cut(lesion))
    is_crop = is_whole(settings.box_to_cut(lesion), image.shape)
    lesion = clip_box(lesion, image.shape) if lesion else None
    if chest_wall_on_right(mask):
        image, mask = image[:, ::-1], mask[:, ::-1]
        lesion = mirror_box(lesion, image.shape[1]) if lesion else None
    if settings.input == "roi":
        if lesion is None:
            raise RejectedFile(Reason.LESION_OUTSIDE)
        context = 1.0 if is_crop else settings.context
        window = lesion_window(lesion, image.shape, context=context, minimum=settings.minimum_crop)
        low, high = breast_range(image, mask)
        square, scale, offset = fit_square(crop(image, window), settings.image_size)
        # After the area average, so that a calcification clips only where the output resolves it.
        square = stretch(square, low, high)
    else:
        window = breast_window(mask, margin=settings.margin)
        breast = np.where(crop(mask, window), crop(image, window), 0)
        square, scale, offset = fit_square(breast, settings.image_size)
        square = np.rint(square).astype(np.uint16)
    if settings.clahe:
        square = clahe(square)
    return square, place_box(lesion, window, scale, offset)


def is_whole(box: Box | None, shape: tuple[int, int]) -> bool:
    """Say whether a box covers an image (H, W), which is then a lesion crop already."""
    return box is not None and clip_box(box, shape) == (0.0, 0.0, float(shape[1]), float(shape[0]))


def tissue_mask(image: np.ndarray, box: Box | None) -> np.ndarray:
    """Find the breast; a lesion crop has no air around it, so that all of it counts as breast.

    Args:
        image: (H, W), bright = dense.
        box: the lesion that the image is cut out by; None if it stays whole.

    Returns:
        (H, W) bool.

    Raises:
        RejectedFile: as `breast_mask` does.
    """
    return np.ones(image.shape, bool) if is_whole(box, image.shape) else breast_mask(image)


def breast_mask(image: np.ndarray) -> np.ndarray:
    """Find the breast: a low threshold, the largest component, its holes filled.

    The threshold lies a little above the level of air, which is estimated as a low percentile of
    Otsu's darker class: digitised film has a base density well above 0.

    Args:
        image: (H, W), bright = dense; uint16 or float32.

    Returns:
        (H, W) bool.

    Raises:
        RejectedFile: the image is blank, or nothing in it is as large as a breast.
    """
    height, width = image.shape
    shrink = min(1.0, _MASK_SIDE / max(height, width))
    small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    thumbnail = cv2.resize(
        image.astype(np.float32, copy=False), small, interpolation=cv2.INTER_AREA
    )
    bright, dark = np.percentile(thumbnail, [99, 0])
    if not bright > dark:
        raise RejectedFile(Reason.BLANK)
    levels = np.rint(np.clip((thumbnail - dark) / (bright - dark), 0, 1) * 255).astype(np.uint8)
    split, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    air = np.percentile(levels[levels <= split], 10)
    tissue = (levels > air + _MASK_LEVEL * (255 - air)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_MASK_OPENING, _MASK_OPENING))
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, kernel)
    count, components, stats, _ = cv2.connectedComponentsWithStats(tissue)
    if count < 2:
        raise RejectedFile(Reason.NO_BREAST)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    if stats[largest, cv2.CC_STAT_AREA] < _SMALLEST_BREAST * tissue.size:
        raise RejectedFile(Reason.NO_BREAST)
    breast = (components == largest).astype(np.uint8)
    outline, _ = cv2.findContours(breast, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(breast, outline, -1, color=1, thickness=cv2.FILLED)
    breast = cv2.dilate(breast, np.ones((_MASK_SKIN, _MASK_SKIN), np.uint8))
    full = cv2.resize(breast * 255, (width, height), interpolation=cv2.INTER_LINEAR)
    return full > 127


def chest_wall_on_right(mask: np.ndarray) -> bool:
    """Say whether the breast (H, W) touches the right edge of the image more than the left one."""
    strip = max(1, mask.shape[1] // 20)
    return int(mask[:, -strip:].sum()) > int(mask[:, :strip].sum())


def clip_box(box: Box, shape: tuple[int, int]) -> Box | None:
    """Return the part of a box that lies inside an image (H, W), or None."""
    height, width = shape
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def mirror_box(box: Box, width: int) -> Box:
    """Mirror a box left to right in an image of that width."""
    return width - box[2], box[1], width - box[0], box[3]


def breast_window(mask: np.ndarray, *, margin: float) -> Window:
    """Return the bounding window of the mask (H, W), widened by a margin, inside the image.

    Args:
        mask: at least one pixel is True.
        margin: fraction of the breast's longer side.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    pad = round(margin * max(y1 - y0, x1 - x0))
    height, width = mask.shape
    return Window(
        int(max(x0 - pad, 0)),
        int(max(y0 - pad, 0)),
        int(min(x1 + pad, width)),
        int(min(y1 + pad, height)),
    )


def lesion_window(lesion: Box, shape: tuple[int, int], *, context: float, minimum: float) -> Window:
    """Return the square window around a lesion; it may reach beyond the image.

    Args:
        lesion: the box.
        shape: (H, W) of the image.
        context: side of the square as a multiple of the box's longer side.
        minimum: least side as a fraction of the image's longer side.
    """
    x0, y0, x1, y1 = lesion
    side = max(context * max(x1 - x0, y1 - y0), minimum * max(shape), 1.0)
    side = round(side)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    return Window(left, top, left + side, top + side)


def crop(image: np.ndarray, window: Window) -> np.ndarray:
    """Cut a window out of an image (H, W); beyond its edges the image is mirrored.

    Mirroring keeps a lesion at the chest wall in the centre without an artificial edge, on which a
    likelihood would spend its evidence.
    """
    height, width = image.shape
    if min(window) >= 0 and window.x1 <= width and window.y1 <= height:
        return image[window.y0 : window.y1, window.x0 : window.x1]
    rows = _mirrored(window.y0, window.y1, height)
    columns = _mirrored(window.x0, window.x1, width)
    mirrored: np.ndarray = image[np.ix_(rows, columns)]
    return mirrored


def _mirrored(start: int, stop: int, length: int) -> np.ndarray:
    """Return the indices start … stop - 1, folded back into 0 … length - 1."""
    folded = np.arange(start, stop) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def fit_square(
    image: np.ndarray, size: int
) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    """Resize an image into a square, keeping the aspect; the rest is 0.

    Shrinking averages over areas, so that small bright calcifications are not skipped. The image
    sits at the left edge, where the chest wall is, and is centred vertically.

    Args:
        image: (H, W).
        size: S.

    Returns:
        (S, S) float32, the scale (x, y), and the offset (x, y) of the image in the square.
    """
    height, width = image.shape
    shrink = size / max(height, width)
    new_width, new_height = max(1, round(width * shrink)), max(1, round(height * shrink))
    method = cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(
        np.ascontiguousarray(image, np.float32), (new_width, new_height), interpolation=method
    )
    square = np.zeros((size, size), np.float32)
    top = (size - new_height) // 2
    square[top : top + new_height, :new_width] = resized
    return square, (new_width / width, new_height / height), (0, top)


def breast_range(image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Return the 0.5th and 99.5th percentile of an image (H, W) well inside the breast.

    The rim is left out, where the mask includes some air and the compressed breast thins out.

    Raises:
        RejectedFile: the breast is uniform.
    """
    step = max(1, max(image.shape) // _MASK_SIDE)
    coarse = mask[::step, ::step].astype(np.uint8)
    inside = cv2.erode(coarse, np.ones((_RIM, _RIM), np.uint8)) > 0
    sample = image[::step, ::step][inside if inside.any() else coarse > 0]
    if sample.size == 0:
        raise RejectedFile(Reason.NO_BREAST)
    low, high = (float(value) for value in np.percentile(sample, _BREAST_PERCENTILES))
    if not high > low:
        raise RejectedFile(Reason.BLANK)
    return low, high


def shown_range(image: np.ndarray, box: Box | None) -> tuple[float, float]:
    """Return the values of an image (H, W) without a window that become black and full brightness.

    What a lesion crop is cut from keeps room above its tissue: calcifications are to clip only
    after the area average, as they do in a file with a window.

    Args:
        image: bright = dense.
        box: the lesion that the image is cut out by; None if it stays whole.

    Raises:
        RejectedFile: the image is blank, or there is no breast in it.
    """
    low, high = breast_range(image, tissue_mask(image, box))
    return low, high if box is None else low + _ROOM * (high - low)


def stretch(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] to the full 16 bits, with headroom above `high`; uint16 of the same shape."""
    scaled = (image - low) / ((1 + _HEADROOM) * (high - low))
    return np.rint(np.clip(scaled, 0, 1) * FULL_RANGE).astype(np.uint16)


def clahe(image: np.ndarray) -> np.ndarray:
    """Equalise the contrast of one image (S, S) uint16 locally; 0 stays 0."""
    equalised = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(image)
    return np.where(image > 0, equalised, 0).astype(np.uint16)


def place_box(
    box: Box | None, window: Window, scale: tuple[float, float], offset: tuple[int, int]
) -> np.ndarray:
    """Carry a box from the image into the square that `fit_square` made of a window.

    Returns:
        (4,) float32; NaN if there is no box.
    """
    if box is None:
        return np.full(4, np.nan, np.float32)
    edges = np.array(box, np.float64).reshape(2, 2)
    edges = (edges - (window.x0, window.y0)) * scale + offset
    return edges.reshape(4).astype(np.float32)
