"""How near the network comes to what the machine can do.

The floating-point operations of convolutions and linear layers (`torch.utils.flop_counter`) per
second of wall time, over the rate of a large matrix product of the same precision in the same run:
float32, or bfloat16 for training where `precision=auto` means that. Rounds of all alternate, and
the fastest of each counts.

forward_fraction      classifying: all classes of a full batch at once
training_fraction     a whole optimiser step: batch, loss, gradient, AdamW and moving average
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Result, note, run, seconds
from sgc_experiments.batches import ImageSet
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.training import TrainingSettings, train
from sgc_experiments.training_settings import Moment, has_fast_bf16

_ROWS = 8  # of the table of operators


class Size(NamedTuple):
    """Rounds, and the evaluations of a batch (images × classes)."""

    image_size: int
    matrix: int
    rounds: int
    evaluations: int
    training_steps: int


QUICK = Size(image_size=32, matrix=1024, rounds=3, evaluations=128, training_steps=6)
FULL = Size(image_size=32, matrix=2048, rounds=12, evaluations=512, training_steps=20)


def measure(size: Size) -> Result:
    """Rates of the matrix product, the forward pass and the training step."""
    classifier = ScoreBasedClassifier(image_size=size.image_size)
    network = classifier.network.eval()
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, size.matrix, size.matrix, generator=generator)
    z = torch.randn(size.evaluations // 2, 1, size.image_size, size.image_size, generator=generator)
    log_snr = torch.zeros(len(z))

    @torch.no_grad()
    def forward() -> None:
        network.all_classes(z, log_snr)

    low = torch.bfloat16 if has_fast_bf16(torch.device("cpu"), network) else torch.float32
    factors = {"product": (left, right), "low product": (left.to(low), right.to(low))}
    counts = {"forward": _flops(forward)} | dict.fromkeys(factors, 2 * size.matrix**3)
    times: dict[str, list[float]] = {name: [] for name in (*factors, "forward", "training")}
    for _ in range(size.rounds):
        for name, (a, b) in factors.items():
            times[name] += [seconds(lambda a=a, b=b: a @ b) for _ in range(3)]
        times["forward"].append(seconds(forward))
        step_times, counts["training"] = _training_step(size, classifier)
        times["training"] += step_times
    rates = {name: counts[name] / min(values) / 1e9 for name, values in times.items()}
    note(f"training, and the low product, in {low}")
    for name, rate in rates.items():
        note(f"{name:11s} {counts[name] / 1e9:8.2f} GFLOP, {rate:7.1f} GFLOP/s at best")
    _show_operators("forward", forward)
    _show_operators("training", lambda: _training_step(size, classifier))
    return {
        "forward_fraction": rates["forward"] / rates["product"],
        "training_fraction": rates["training"] / rates["low product"],
    }


def _flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _training_step(size: Size, classifier: ScoreBasedClassifier) -> tuple[list[float], int]:
    """Seconds of each step of the real training loop after the first, and one step's FLOPs."""
    settings = TrainingSettings(budget=f"steps:{size.training_steps}", log_every=1, progress=False)
    random = np.random.default_rng(0)
    shape = (256, size.image_size, size.image_size)
    images = ImageSet(random.integers(0, 65536, shape).astype(np.uint16), np.arange(256) % 2)
    nothing = ImageSet(images.images[:0], images.labels[:0])
    ends: list[float] = []
    train(
        classifier.network,
        classifier.objective,
        images,
        nothing,
        settings=settings,
        on_step=lambda metrics, step: ends.append(time.perf_counter()),
    )
    x = torch.randn(settings.batch_size, 1, size.image_size, size.image_size)
    labels = torch.arange(len(x)) % 2

    def gradient() -> None:
        loss, _ = classifier.objective.loss(
            classifier.network, x, labels, torch.Generator(), Moment(0, 0.0)
        )
        loss.backward()

    flops = _flops(gradient)
    classifier.network.zero_grad()
    return np.diff(ends).tolist(), flops


def _show_operators(name: str, call) -> None:
    """Where the time goes, by operator."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    events = [e for e in profiler.key_averages() if e.self_cpu_time_total > 0]
    total = sum(e.self_cpu_time_total for e in events)
    note(f"{name}, share of the time by operator:")
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[:_ROWS]:
        note(f"  {100 * event.self_cpu_time_total / total:5.1f} %  {event.key} × {event.count}")


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
