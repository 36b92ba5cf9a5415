"""What it costs to classify an image, and how well it is done, on one trained network.

Three ways: this project's evaluation plan (noise levels in a band chosen on validation images, the
noise shared by the classes); the paper's (see `published_recipe`), with the probe shared by the
classes too, which helps it; and 51 shared draws of uniform time for each class (Favero et al.,
MIDL 2025), by the sum or the vote of the draws, whichever does better.

speedup_vs_paper         time per image of the paper's procedure over ours
auc, auc_paper           on the test images
evaluations_per_image    ours, over both classes
auc_gap_to_128           AUC of our plan with 128 evaluations, minus `auc`
"""

from typing import NamedTuple

import numpy as np
import torch

from benchmarks.accuracy import auc, estimate_auc
from benchmarks.crops import phantom_crops
from benchmarks.published_recipe import log_likelihood
from benchmarks.report import Result, note, run, seconds
from sgc_experiments.batches import to_model_range
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.likelihood import make_draws, squared_errors
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.probability_flow import make_probes
from sgc_experiments.training import TrainingSettings

EVALUATIONS = 8
_FAVERO_DRAWS = 51
_TABLE = (4, 8, 16, 32, 128)


class Size(NamedTuple):
    """How much is measured: `images` bounds the test images, `batch` is that of the ODE."""

    patients: int
    image_size: int
    budget: str
    images: int
    batch: int


QUICK = Size(patients=40, image_size=32, budget="steps:120", images=16, batch=16)
FULL = Size(patients=320, image_size=32, budget="steps:2000", images=10_000, batch=64)


def measure(size: Size) -> Result:
    """Train once and classify the test images in each way."""
    crops = phantom_crops(size.patients, size.image_size)
    classifier = ScoreBasedClassifier(image_size=size.image_size, evaluations=EVALUATIONS)
    settings = TrainingSettings(budget=size.budget, progress=False)
    took = seconds(lambda: classifier.fit(crops.train, crops.validation, settings=settings))
    note(f"trained on {len(crops.train.labels)} images for {took:.0f} s ({size.budget})")

    images, labels = (part[: size.images] for part in crops.test)
    patients = crops.test_patients[: size.images]
    scores = {}
    for count in _TABLE:
        answer = classifier.predict_log_odds(images, evaluations=count)
        scores[count] = answer.log_odds[:, 1]
        note(f"{count:4d} evaluations: AUC {auc(labels, scores[count]):.4f}")
    favero, way = _favero(classifier, images, labels)
    note(f" 102 evaluations, 51 uniform draws, {way}: AUC {auc(labels, favero):.4f}")
    note(_difference("8 evaluations minus the 51 draws", labels, patients, scores[8], favero))

    # Ours before and after the long one, so that a machine that slows down slows both.
    ours = [_seconds_per_image(classifier, images)]
    paper, paper_seconds = _paper(classifier, images, size.batch)
    ours.append(_seconds_per_image(classifier, images))
    own = scores[EVALUATIONS]
    note(f"ours {1e3 * np.mean(ours):.2f} ms, the paper's {1e3 * paper_seconds:.1f} ms per image")
    note(_difference("ours minus the paper's", labels, patients, own, paper))
    return {
        "speedup_vs_paper": paper_seconds / float(np.mean(ours)),
        "auc": auc(labels, own),
        "auc_paper": auc(labels, paper),
        "evaluations_per_image": EVALUATIONS,
        "auc_gap_to_128": auc(labels, scores[128]) - auc(labels, own),
    }


def _seconds_per_image(classifier: ScoreBasedClassifier, images: np.ndarray) -> float:
    return min(seconds(lambda: classifier.predict_log_odds(images)) for _ in range(3)) / len(images)


def _standardised(classifier: ScoreBasedClassifier, images: np.ndarray) -> torch.Tensor:
    return classifier.network.standardise(to_model_range(images))


def _paper(
    classifier: ScoreBasedClassifier, images: np.ndarray, batch: int
) -> tuple[np.ndarray, float]:
    """Log-odds by the paper's procedure, and its seconds per image."""
    x = _standardised(classifier, images)
    probe = make_probes("rademacher", 1, x.shape[1:], seed=0)
    ends = {name: getattr(classifier.settings, name) for name in ("log_snr_min", "log_snr_max")}
    log_odds, calls = [], []

    def classify() -> None:
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            values = []
            for label in (0, 1):
                value, count = log_likelihood(
                    classifier.network, classifier.sde, part, label, probe.expand_as(part), **ends
                )
                values.append(value)
                calls.append(count)
            log_odds.append(values[1] - values[0])

    took = seconds(classify)
    note(f"the paper's procedure: {min(calls)} to {max(calls)} evaluations per class")
    return np.concatenate(log_odds), took / len(x)


def _favero(
    classifier: ScoreBasedClassifier, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, str]:
    """Scores from 51 draws of uniform time, and how they were put together."""
    ends = [getattr(classifier.settings, name) for name in ("log_snr_max", "log_snr_min")]
    times = classifier.sde.time(torch.tensor(ends, dtype=torch.float64)).tolist()
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(_FAVERO_DRAWS, generator=generator, dtype=torch.float64)
    t = times[0] + (times[1] - times[0]) * t
    x = _standardised(classifier, images)
    draws = make_draws(x.shape[1:], LogSNRDensity.uniform(ends[1], ends[0]), _FAVERO_DRAWS)
    draws.log_snr.copy_(classifier.sde.log_snr(t))
    errors = squared_errors(classifier.network, x, draws)
    evidence = errors[..., 0] - errors[..., 1]
    ways = {"summed": evidence.sum(1).numpy(), "voted": (evidence > 0).sum(1).double().numpy()}
    best = max(ways, key=lambda way: auc(labels, ways[way]))
    return ways[best], best


def _difference(
    name: str, labels: np.ndarray, patients: np.ndarray, first: np.ndarray, second: np.ndarray
) -> str:
    """A paired difference of AUCs with its interval over patients."""
    value, low, high = estimate_auc(labels, patients, first, minus=second)
    return f"AUC, {name}: {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
