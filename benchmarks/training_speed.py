"""Time of training until held-out images are told apart with an AUC of 0.90.

This project's defaults against the paper's recipe (see `published_recipe`) on the same crops. Both
are judged alike and in our way, which the recipe gains from: 32 noise levels, the band of them
chosen on validation images, the AUC taken on the test images. Judging is not counted. The recipe
is judged twenty times, which may add a twentieth of the longest time to what it took.

speedup_vs_paper           time of the recipe over ours
speedup_is_lower_bound     the recipe had not got there when it was stopped
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.crops import Crops, phantom_crops
from benchmarks.published_recipe import PublishedNetwork, dataset_standardisation, training_steps
from benchmarks.report import Result, note, run
from sgc_experiments.batches import to_model_range
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.evaluation_plan import choose_band, mean_pairwise_auc
from sgc_experiments.likelihood import Denoiser, make_draws, squared_errors
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.objective import DenoisingScoreMatching
from sgc_experiments.training import TrainingSettings, train

_DRAWS = 32
_LOOKS = 20  # at the recipe


class Size(NamedTuple):
    """The AUC to reach; after how many of our steps to look; when to stop the recipe.

    The last in multiples of our time.
    """

    patients: int
    image_size: int
    budget: str
    target: float
    look_every: int
    patience: float


QUICK = Size(40, 32, "steps:150", target=0.55, look_every=25, patience=4)
FULL = Size(320, 32, "steps:2000", target=0.90, look_every=25, patience=10.5)


def measure(size: Size) -> Result:
    """Train both, ours first, whose time bounds that of the other."""
    crops = phantom_crops(size.patients, size.image_size)
    ours = _ours(size, crops)
    note(f"ours: {ours:.1f} s to an AUC of {size.target}")
    published, reached = _published(size, crops, limit=size.patience * ours)
    note(f"the recipe: {published:.1f} s, {'reached' if reached else 'not reached'}")
    return {"speedup_vs_paper": published / ours, "speedup_is_lower_bound": not reached}


class _Judged(DenoisingScoreMatching):
    """The objective, whose validation tells the AUC and stops the clock meanwhile."""

    def judge_on(self, crops: Crops, target: float) -> None:
        self.crops, self.target = crops, target
        self.reached = False
        self.judging = 0.0

    def validate(
        self, network: nn.Module, images: np.ndarray, labels: np.ndarray
    ) -> dict[str, float]:
        started = time.perf_counter()
        auc = _held_out_auc(
            network,
            *(network.standardise(to_model_range(part.images)) for part in self.crops[1:3]),
            self.crops,
            (self.low, self.high),
        )
        self.reached = auc >= self.target
        self.judging += time.perf_counter() - started
        note(f"  ours, AUC {auc:.3f}")
        return {self.monitor: -auc}


def _ours(size: Size, crops: Crops) -> float:
    """Seconds of training to the target.

    Raises:
        SystemExit: The budget ended before.
    """
    classifier = ScoreBasedClassifier(image_size=size.image_size)
    of_levels = ("log_snr_min", "log_snr_max", "weighting", "log_snr_sampling")
    names = (*of_levels, "hybrid_weight", "label_smoothing")
    objective = _Judged(
        classifier.sde, **{name: getattr(classifier.settings, name) for name in names}
    )
    objective.judge_on(crops, size.target)
    pixels = to_model_range(crops.train.images)
    classifier.network.pixel_mean.copy_(pixels.mean())
    classifier.network.pixel_std.copy_(pixels.std())
    settings = TrainingSettings(budget=size.budget, validate_every=size.look_every, progress=False)
    started = time.perf_counter()
    train(
        classifier.network,
        objective,
        crops.train,
        crops.validation,
        settings=settings,
        should_stop=lambda: objective.reached,
    )
    if not objective.reached:
        raise SystemExit(f"Our training ended at {size.budget} below an AUC of {size.target}.")
    return time.perf_counter() - started - objective.judging


def _published(size: Size, crops: Crops, limit: float) -> tuple[float, bool]:
    """Seconds of training to the target or the limit, and whether it was reached."""
    torch.manual_seed(0)
    classifier = ScoreBasedClassifier(image_size=size.image_size)
    network = PublishedNetwork(2, classifier.sde)
    standardise = dataset_standardisation(crops.train.images)
    held_out = [standardise(part.images) for part in crops[1:3]]
    ends = (classifier.settings.log_snr_min, classifier.settings.log_snr_max)
    took, started = 0.0, time.perf_counter()
    looks = 0
    for step in training_steps(network, crops.train, standardise):
        now = took + time.perf_counter() - started
        if now < (looks + 1) * limit / _LOOKS:
            continue
        took, looks = now, looks + 1
        network.eval()
        auc = _held_out_auc(network, *held_out, crops, ends)
        note(f"  recipe, step {step}, {took:.0f} s, AUC {auc:.3f}")
        if auc >= size.target or took >= limit:
            break
        started = time.perf_counter()
    return took, auc >= size.target


def _held_out_auc(
    network: Denoiser, validation: Tensor, test: Tensor, crops: Crops, ends: tuple[float, float]
) -> float:
    """AUC on the test images, from the band of noise levels that validation images choose."""
    draws = make_draws(validation.shape[1:], LogSNRDensity.uniform(*ends), _DRAWS)
    of_validation, of_test = (squared_errors(network, x, draws) for x in (validation, test))
    levels, labels = draws.log_snr, crops.validation.labels
    low, high = choose_band(of_validation, levels, labels, *ends, draws=_DRAWS // 4)
    inside = (draws.log_snr >= low) & (draws.log_snr <= high)
    evidence = -of_test[:, inside].sum(1).numpy()
    return mean_pairwise_auc(evidence, crops.test.labels)


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
