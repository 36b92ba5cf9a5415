"""Exact likelihoods in few evaluations: fixed steps on a grid even in λ against adaptive RK45.

Both follow the same flow of the same trained network, with the same probes, in float64; the
adaptive one at a tolerance of 1e-7 is the truth.

bits_per_dim_error     largest difference over images and classes, in bits per pixel
evaluation_ratio       evaluations in fixed steps (of order 4) over those of the adaptive solver
"""

from typing import NamedTuple

import torch

from benchmarks.crops import phantom_crops
from benchmarks.report import Result, note, run, seconds
from sgc_experiments.batches import to_model_range
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.likelihood import bits_per_dim
from sgc_experiments.probability_flow import OdeSettings, probability_flow_ode
from sgc_experiments.training import TrainingSettings

_TOLERANCE = 1e-7


class Size(NamedTuple):
    """How much is measured."""

    patients: int
    image_size: int
    budget: str
    images: int
    steps: tuple[int, ...]


QUICK = Size(40, 32, "steps:60", images=1, steps=(6, 12))
FULL = Size(320, 32, "steps:2000", images=6, steps=(6, 8, 12, 16, 32))


def measure(size: Size) -> Result:
    """Report the fewest steps that stay within 0.01 bits per pixel, else the most steps."""
    crops = phantom_crops(size.patients, size.image_size)
    classifier = ScoreBasedClassifier(image_size=size.image_size)
    settings = TrainingSettings(budget=size.budget, progress=False)
    classifier.fit(crops.train, crops.validation, settings=settings)
    network = classifier.network.double()
    x = network.standardise(to_model_range(crops.test.images[: size.images]).double())
    ends = {name: getattr(classifier.settings, name) for name in ("log_snr_min", "log_snr_max")}

    def bits(settings: OdeSettings) -> tuple[torch.Tensor, float]:
        estimate = probability_flow_ode(network, classifier.sde, x, settings=settings)
        # Differences do not depend on the width of a grey level.
        values = bits_per_dim(estimate.log_likelihood, x[0].numel(), 1.0)
        return values, float(estimate.evaluations.mean())

    adaptive = OdeSettings(solver="dopri5", tolerance=_TOLERANCE, **ends)
    truth: list[tuple[torch.Tensor, float]] = []
    took = seconds(lambda: truth.append(bits(adaptive)))
    exact, most = truth[0]
    note(f"adaptive, 1e-7: {most:.0f} evaluations per image over both classes, {took:.0f} s")
    for steps in size.steps:
        values, count = bits(OdeSettings(solver="rk4", steps=steps, **ends))
        error = float((values - exact).abs().max())
        note(f"order 4, {steps} steps: {count:.0f} evaluations, largest error {error:.5f} bits/dim")
        if error <= 0.01:
            break
    return {"bits_per_dim_error": error, "evaluation_ratio": count / most}


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
