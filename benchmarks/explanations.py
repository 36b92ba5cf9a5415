"""Whether the map of the log-odds points at the lesion, wherever it lies in the image.

Windows of the phantom's mammograms, with the lesion at a random place in them, train and test. The
maximum of the map of every malignant test image, by as many evaluations as asked for, lies inside
the box of its lesion or not. The figure is reported as it is, beside that of a pixel picked at
random in the breast.

hit_rate                 of the map's maximum
hit_rate_smoothed        after a Gaussian blur of one pixel, which draws neighbours together
hit_rate_by_chance       mean share of the breast that the box takes
auc                      of the classifier, on all test images: maps of a poor one point anywhere
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy import auc
from benchmarks.crops import phantom_crops
from benchmarks.report import Result, note, run
from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.training import TrainingSettings

_BLUR = 1.0  # pixels


class Size(NamedTuple):
    """How much is measured: `evaluations` of the network go into a map.

    Windows of `window` pixels are cut out of whole images of `image_size` pixels.
    """

    patients: int
    image_size: int
    window: int
    budget: str
    evaluations: int


QUICK = Size(patients=40, image_size=96, window=32, budget="steps:60", evaluations=64)
FULL = Size(patients=2000, image_size=192, window=48, budget="steps:2000", evaluations=512)


def measure(size: Size) -> Result:
    """Train once, and look where the maps have their maxima."""
    crops = phantom_crops(size.patients, size.image_size, input="whole", window=size.window)
    classifier = ScoreBasedClassifier(image_size=size.window)
    settings = TrainingSettings(
        budget=size.budget,
        progress=False,
        augmentation=AugmentationSettings(transpose=True),
    )
    classifier.fit(crops.train, crops.validation, settings=settings)
    scores = classifier.predict_log_odds(crops.test.images).log_odds[:, 1]
    test_auc = auc(crops.test.labels, scores)

    shown = (crops.test.labels == 1) & np.isfinite(crops.test_boxes).all(1)
    images, boxes = crops.test.images[shown], crops.test_boxes[shown]
    maps = classifier.explain(images, evaluations=size.evaluations)
    result = {
        "hit_rate": hits(maps, boxes).mean(),
        "hit_rate_smoothed": hits(maps, boxes, blur=_BLUR).mean(),
        "hit_rate_by_chance": _chance(images, boxes).mean(),
        "auc": test_auc,
    }
    note(f"{len(images)} malignant test images, AUC of all {len(scores)}: {test_auc:.3f}")
    return {name: float(value) for name, value in result.items()}


def hits(maps: np.ndarray, boxes: np.ndarray, *, blur: float = 0.0) -> np.ndarray:
    """Whether the maximum of each map (N, S, S) lies in its box (N, 4), bool (N,).

    A pixel lies in a box if its centre does; `blur` is the standard deviation in pixels.
    """
    inside = []
    for evidence, (x0, y0, x1, y1) in zip(maps, boxes, strict=True):
        smooth = gaussian_filter(evidence, blur) if blur else evidence
        row, column = np.unravel_index(smooth.argmax(), smooth.shape)
        inside.append(x0 <= column + 0.5 <= x1 and y0 <= row + 0.5 <= y1)
    return np.array(inside, dtype=bool)


def _chance(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of each image's breast (what is not background) that its box takes, (N,)."""
    centres = np.arange(images.shape[1]) + 0.5
    shares = []
    for image, (x0, y0, x1, y1) in zip(images, boxes, strict=True):
        box = np.outer((centres >= y0) & (centres <= y1), (centres >= x0) & (centres <= x1))
        breast = image > 0
        shares.append((box & breast).sum() / max(1, breast.sum()))
    return np.array(shares)


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
