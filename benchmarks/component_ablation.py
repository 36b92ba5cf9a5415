"""What each part of the generative classifier brings: one changed at a time, at equal wall time.

On lesion crops of the hard phantom, all with the same split, seed and budget; networks of timm from
scratch stand beside them, and at several numbers of patients against the reference. A quarter of
all patients is tested on. Intervals are 95 %, over patients.

auc_PART_N               of the test images, trained on N patients
gain_PART_N              that of the reference minus that of PART, of the same images
"""

from typing import Any, NamedTuple

import numpy as np

from baselines.timm_classifier import TimmClassifier
from benchmarks.accuracy import estimate_auc
from benchmarks.crops import Crops, phantom_crops
from benchmarks.report import Result, note, run
from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.protocol import Classifier
from sgc_experiments.training import TrainingSettings


class Part(NamedTuple):
    """What differs from the reference, in whose place `network` names a network of timm."""

    model: dict[str, Any] = {}  # noqa: RUF012 - never written to
    settings: dict[str, Any] = {}  # noqa: RUF012
    augmentation: dict[str, float | bool] = {}  # noqa: RUF012
    image_size: int = 32
    network: str | None = None


REFERENCE = "reference"
PARTS = {
    REFERENCE: Part(),
    "without_cross_entropy": Part(model={"hybrid_weight": 0.0}),
    "resnet10t": Part(network="resnet10t", settings={"learning_rate": 1e-3}),
    "resnet18": Part(network="resnet18", settings={"learning_rate": 1e-3}),
    "48_pixels": Part(image_size=48),
    "three_levels": Part(model={"channels": (32, 64, 128)}),
    "two_levels": Part(model={"channels": (32, 64)}),
    "all_levels_of_noise_alike": Part(model={"weighting": "elbo"}),
    "no_shift": Part(model={"sde_parameters": {"log_snr_shift": 0.0}}),
    "image_standardised": Part(model={"standardisation": "image"}),
    "learning_rate_of_0.002": Part(settings={"learning_rate": 2e-3}),
    "four_symmetries": Part(augmentation={"transpose": False}),
    "distortions": Part(
        augmentation={"rotation": 15.0, "scale": 0.15, "shift": 0.05, "contrast": 0.2}
    ),
    "fp32": Part(settings={"precision": "fp32"}),
}
RIVALS = (REFERENCE, "without_cross_entropy", "resnet10t", "resnet18")


class Size(NamedTuple):
    """How much is measured: `subsets` are numbers of patients for training and validation.

    All `parts` are measured with the last, and `rivals` with the others.
    """

    patients: int
    subsets: tuple[int, ...]
    budget: str
    parts: tuple[str, ...] = tuple(PARTS)
    rivals: tuple[str, ...] = RIVALS


QUICK = Size(40, (20,), "steps:10", parts=(REFERENCE, "resnet10t"))
FULL = Size(patients=2000, subsets=(50, 100, 350), budget="seconds:120")


def measure(size: Size) -> Result:
    """Train and test the parts, the reference first, at every number of patients."""
    result: Result = {}
    for subset in size.subsets:
        reference = np.zeros(0)
        for name in size.parts if subset == size.subsets[-1] else size.rivals:
            part = PARTS[name]
            crops = phantom_crops(
                size.patients, part.image_size, difficulty="hard", n_patients=subset
            )
            scores = _scores(part, crops, size.budget)
            images = crops.test.labels, crops.test_patients
            figures = {"auc": estimate_auc(*images, scores)}
            if name == REFERENCE:
                reference = scores
            else:
                figures["gain"] = estimate_auc(*images, reference, minus=scores)
            text = f"{subset} patients, {name}:"
            for figure, (value, low, high) in figures.items():
                text += f" {figure} {value:.3f} ({low:.3f} to {high:.3f})"
                result[f"{figure}_{name}_{subset}"] = value
            note(text)
    return result


def _scores(part: Part, crops: Crops, budget: str) -> np.ndarray:
    """Log-odds of the test images after training."""
    classes = ("benign", "malignant")
    classifier: Classifier
    if part.network:
        classifier = TimmClassifier(classes, part.image_size, model=part.network)
    else:
        classifier = ScoreBasedClassifier(classes, part.image_size, **part.model)
    classifier.fit(
        crops.train,
        crops.validation,
        settings=TrainingSettings(
            budget=budget,
            progress=False,
            augmentation=AugmentationSettings(**{"transpose": True} | part.augmentation),
            **part.settings,
        ),
    )
    return classifier.predict_log_odds(crops.test.images).log_odds[:, 1]


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
