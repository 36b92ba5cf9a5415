"""What each part of the generative classifier brings: one changed at a time, at equal wall time.

On lesion crops of the hard phantom, at several numbers of patients, all with the same split, seed
and budget; a network of timm from scratch stands beside them. Intervals are 95 %, over patients.

auc_PART_N               of the test images, trained on N patients (0: all of them)
"""

from typing import Any, NamedTuple

import numpy as np

from baselines.timm_classifier import TimmClassifier
from benchmarks.crops import Crops, phantom_crops
from benchmarks.report import Result, note, run
from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.bootstrap import bootstrap, interval
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.metrics import rank_metrics
from sgc_experiments.protocol import Classifier
from sgc_experiments.training import TrainingSettings


class Size(NamedTuple):
    """How much is measured: `subsets` are numbers of patients, 0 for all."""

    patients: int
    subsets: tuple[int, ...]
    budget: str
    parts: tuple[str, ...] | None = None


class Part(NamedTuple):
    """What differs from the reference, in whose place `network` names a network of timm."""

    model: dict[str, Any] = {}  # noqa: RUF012 - never written to
    settings: dict[str, Any] = {}  # noqa: RUF012
    transpose: bool = True
    image_size: int = 32
    network: str | None = None


REFERENCE = {"log_snr_min": 0.0}
PARTS = {
    "reference": Part(),
    "48_pixels": Part(image_size=48),
    "fp32": Part(settings={"precision": "fp32"}),
    "four_symmetries": Part(transpose=False),
    "levels_from_-4": Part(model={"log_snr_min": -4.0}),
    "class_in_head": Part(model={"class_conditioning": "head"}),
    "class_in_head_hybrid": Part(model={"class_conditioning": "head", "hybrid_weight": 1e-3}),
    "hybrid": Part(model={"hybrid_weight": 1e-3}),
    "resnet10t": Part(network="resnet10t"),
}
QUICK = Size(patients=40, subsets=(0,), budget="steps:10", parts=("reference", "resnet10t"))
FULL = Size(patients=600, subsets=(50, 100, 0), budget="seconds:90")


def measure(size: Size) -> Result:
    """Train and test every part at every number of patients."""
    result: Result = {}
    for subset in size.subsets:
        for name in size.parts or PARTS:
            part = PARTS[name]
            crops = phantom_crops(
                size.patients, part.image_size, difficulty="hard", n_patients=subset or None
            )
            auc, low, high = _auc_of(part, crops, size.budget)
            note(f"{subset or 'all'} patients, {name}: AUC {auc:.3f} ({low:.3f} to {high:.3f})")
            result[f"auc_{name}_{subset}"] = auc
    return result


def _auc_of(part: Part, crops: Crops, budget: str) -> tuple[float, float, float]:
    """Test AUC after training, with its interval."""
    classes = ("benign", "malignant")
    classifier: Classifier
    if part.network:
        classifier = TimmClassifier(classes, part.image_size, model=part.network)
        rate = 1e-3
    else:
        classifier = ScoreBasedClassifier(classes, part.image_size, **REFERENCE | part.model)
        rate = 2e-3
    settings = TrainingSettings(
        budget=budget,
        learning_rate=rate,
        validate_every=200,
        progress=False,
        augmentation=AugmentationSettings(transpose=part.transpose),
        **part.settings,
    )
    classifier.fit(crops.train, crops.validation, settings=settings)
    scores = classifier.predict_log_odds(crops.test.images).log_odds[:, 1]
    resamples = bootstrap(
        lambda weights: {"auc": rank_metrics(crops.test.labels, scores, weights)["auc"]},
        crops.test_patients,
        n_bootstrap=2000,
        seed=0,
    )
    estimate = resamples.estimate["auc"]
    patients = len(np.unique(crops.test_patients))
    return (estimate, *interval(estimate, resamples.samples["auc"], n_patients=patients))


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
