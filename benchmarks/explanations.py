"""Whether the map of the log-odds points at the lesion, wherever it lies in the image.

Windows of the phantom's mammograms with the lesion at a random place in them train and test; the
training begins with windows around the lesion, from which the classes are learnt sooner. The
maximum of the map of each malignant test image lies inside the box of its lesion or not. By chance
means: inside the box of another image, so that a preference for the middle of the window earns
nothing.

The box is that of the contour that a radiologist would draw, at 1.2 to 1.4 radii of the mass, which
tells nothing of its class. Spicules, the clearest sign of malignancy, reach to 2.2 radii: the
second box is larger by that.

hit_rate                           of the map's maximum, in the box of the contour
hit_rate_smoothed                  after a Gaussian blur of half a lesion's radius
hit_rate_by_chance                 of the smoothed map
hit_rate_with_spicules             of the smoothed map, in the larger box
hit_rate_with_spicules_by_chance
auc                                of the classifier, on all test images
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy import auc
from benchmarks.crops import Crops, phantom_crops
from benchmarks.report import Result, note, run
from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.training import TrainingSettings

_BLUR = 3.0  # pixels
_WITH_SPICULES = 2.2 / 1.3


class Size(NamedTuple):
    """How much is measured: `evaluations` of the network go into a map.

    Windows of `window` pixels are cut out of whole images of `image_size` pixels, `per_image` out
    of each training image.
    """

    patients: int
    image_size: int
    window: int
    per_image: int
    centred_steps: int
    steps: int
    evaluations: int


QUICK = Size(
    patients=40, image_size=96, window=32, per_image=2, centred_steps=30, steps=30, evaluations=64
)
FULL = Size(
    patients=2000, image_size=192, window=32, per_image=4, centred_steps=2500, steps=4000,
    evaluations=512,
)  # fmt: skip


def measure(size: Size) -> Result:
    """Train, and look where the maps have their maxima."""
    start = _fitted(_crops(size, shift=0.0, per_image=1), size.window, size.centred_steps)
    crops = _crops(size, shift=1.0, per_image=size.per_image)
    classifier = _fitted(crops, size.window, size.steps, start)
    scores = classifier.predict_log_odds(crops.test.images).log_odds[:, 1]
    test_auc = auc(crops.test.labels, scores)

    shown = (crops.test.labels == 1) & np.isfinite(crops.test_boxes).all(1)
    images, boxes = crops.test.images[shown], crops.test_boxes[shown]
    maps = classifier.explain(images, evaluations=size.evaluations)
    smooth = maxima(maps, blur=_BLUR)
    others = np.roll(boxes, len(boxes) // 2, axis=0)
    note(f"{len(images)} malignant test images, AUC of all {len(scores)}: {test_auc:.3f}")
    return {
        "hit_rate": hit_rate(maxima(maps), boxes),
        "hit_rate_smoothed": hit_rate(smooth, boxes),
        "hit_rate_by_chance": hit_rate(smooth, others),
        "hit_rate_with_spicules": hit_rate(smooth, boxes, grown=_WITH_SPICULES),
        "hit_rate_with_spicules_by_chance": hit_rate(smooth, others, grown=_WITH_SPICULES),
        "auc": test_auc,
    }


def _crops(size: Size, *, shift: float, per_image: int) -> Crops:
    return phantom_crops(
        size.patients,
        size.image_size,
        input="whole",
        window=size.window,
        shift=shift,
        per_image=per_image,
    )


def _fitted(
    crops: Crops, side: int, steps: int, start: ScoreBasedClassifier | None = None
) -> ScoreBasedClassifier:
    classifier = ScoreBasedClassifier(image_size=side)
    if start is not None:
        classifier.start_from(start)
    settings = TrainingSettings(
        budget=f"steps:{steps}",
        progress=False,
        augmentation=AugmentationSettings(transpose=True),
    )
    classifier.fit(crops.train, crops.validation, settings=settings)
    return classifier


def maxima(maps: np.ndarray, *, blur: float = 0.0) -> np.ndarray:
    """Where each map (N, S, S) is largest: (N, 2), x and y of the pixel's centre.

    `blur` is the standard deviation of a Gaussian in pixels; beyond the map there is no evidence.
    """
    if blur:
        maps = np.stack([gaussian_filter(m, blur, mode="constant") for m in maps])
    rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(1), maps.shape[1:])
    return np.stack([columns, rows], axis=1) + 0.5


def hit_rate(points: np.ndarray, boxes: np.ndarray, *, grown: float = 1.0) -> float:
    """The share of points (N, 2) that lie in their box (N, 4), made larger by a factor."""
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    return float((np.abs(points - centres) <= grown * halves).all(1).mean())


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
