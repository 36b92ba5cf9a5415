"""What images without labels, and weights from another dataset, bring when few are labelled.

On lesion crops of the hard phantom, at several numbers of labelled patients, with the same split,
seed and steps: trained on the labelled ones alone; with the images of all other training patients
as the null class (`unlabelled=rest`); from the weights of a model of another phantom, fitted to all
of its patients (`init_from`). Intervals are 95 %, over patients, paired.

auc_WAY_N                labelled, unlabelled or transferred; of the test images, N patients
auc_WAY_N_gain           minus that of labelled
"""

from typing import NamedTuple

import numpy as np

from benchmarks.accuracy import estimate_auc
from benchmarks.crops import Crops, phantom_crops
from benchmarks.report import Result, note, run
from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.batches import ImageSet
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.training import TrainingSettings

WAYS = ("labelled", "unlabelled", "transferred")
_OTHER_PHANTOM = 1  # its seed


class Size(NamedTuple):
    """How much is measured: `labelled` are numbers of patients, for training and validation."""

    patients: int
    image_size: int
    labelled: tuple[int, ...]
    budget: str
    channels: tuple[int, ...] = (32, 64, 96, 128)


QUICK = Size(patients=60, image_size=32, labelled=(25,), budget="steps:30")
FULL = Size(patients=600, image_size=32, labelled=(25, 50, 100), budget="steps:1000")


def measure(size: Size) -> Result:
    """Train in each way at each number of labelled patients."""
    other = phantom_crops(size.patients, size.image_size, difficulty="hard", seed=_OTHER_PHANTOM)
    source = _fitted(size, other.train, other)
    result: Result = {}
    for count in size.labelled:
        crops = phantom_crops(size.patients, size.image_size, difficulty="hard", n_patients=count)
        labels = np.concatenate([crops.train.labels, np.full(len(crops.rest), -1)])
        joined = ImageSet(np.concatenate([crops.train.images, crops.rest]), labels)
        models = {
            "labelled": _fitted(size, crops.train, crops),
            "unlabelled": _fitted(size, joined, crops),
            "transferred": _fitted(size, crops.train, crops, start=source),
        }
        scores = {
            way: model.predict_log_odds(crops.test.images).log_odds[:, 1]
            for way, model in models.items()
        }
        note(f"{count} labelled patients, {len(crops.rest)} images without labels:")
        result |= _compared(scores, crops, count)
    return result


def _fitted(
    size: Size, train: ImageSet, crops: Crops, start: ScoreBasedClassifier | None = None
) -> ScoreBasedClassifier:
    model = ScoreBasedClassifier(image_size=size.image_size, channels=size.channels)
    if start is not None:
        model.start_from(start)
    settings = TrainingSettings(
        budget=size.budget, progress=False, augmentation=AugmentationSettings(transpose=True)
    )
    model.fit(train, crops.validation, settings=settings)
    return model


def _compared(scores: dict[str, np.ndarray], crops: Crops, count: int) -> Result:
    """AUCs, and what each way gains over the labelled images alone, with paired intervals."""
    images = crops.test.labels, crops.test_patients
    found = {f"auc_{way}_{count}": estimate_auc(*images, scores[way]) for way in WAYS}
    for way in WAYS[1:]:
        gain = estimate_auc(*images, scores[way], minus=scores["labelled"])
        found[f"auc_{way}_{count}_gain"] = gain
    for name, (value, low, high) in found.items():
        note(f"  {name}: {value:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    return {name: estimate.value for name, estimate in found.items()}


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
