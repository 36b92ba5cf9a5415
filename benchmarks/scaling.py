"""How cost grows: with the resolution, the number of classes and the number of images.

Each point is measured in a process of its own, whose peak memory is therefore that point's. A power
law is fitted to the upper half of each series, where fixed costs have faded.

resolution_exponent    seconds per network evaluation against the side of the image (2: its area)
classes_exponent       seconds to classify an image against the number of classes
images_exponent        seconds of an epoch's batches (order, reading from disk, augmentation)
                       against the number of training images
*_memory_exponent      of the peak memory of the same processes

`--figure FILE` draws the series.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from benchmarks.memory import peak_megabytes
from benchmarks.report import Result, json_line, note
from sgc_experiments.augmentation import AugmentationSettings, augment
from sgc_experiments.batches import BatchOrder, to_model_range
from sgc_experiments.likelihood import make_draws, squared_errors
from sgc_experiments.noise_levels import LogSNRDensity
from sgc_experiments.score_network import ScoreNetwork

# Every point is a process that imports this module; only the figure needs a library for figures.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 48
_BATCH = 32
_DRAWS = 4
_REPEATS = 3


class Size(NamedTuple):
    """The series."""

    resolution: tuple[int, ...]
    classes: tuple[int, ...]
    images: tuple[int, ...]


QUICK = Size((32, 64, 96, 128), (2, 3, 5), (1_000, 4_000, 16_000))
FULL = Size(
    (32, 48, 64, 96, 128, 192, 256, 384),
    (2, 3, 4, 6, 8, 10),
    (1_000, 3_000, 10_000, 30_000, 100_000),
)


class Point(NamedTuple):
    """Seconds, and the peak memory of the process in MB of 1,000,000 bytes."""

    seconds: float
    megabytes: float


def measure(size: Size, figure: Path | None = None) -> Result:
    """Measure the three series."""
    tasks: dict[str, Callable[[int], float]] = {
        "resolution": evaluation_seconds,
        "classes": classification_seconds,
        "images": epoch_seconds,
    }
    result: Result = {}
    series: dict[str, tuple[Sequence[int], list[Point]]] = {}
    for name, task in tasks.items():
        values = getattr(size, name)
        points = [_apart(task, value) for value in values]
        for value, point in zip(values, points, strict=True):
            note(f"{name} {value}: {point.seconds:.3g} s, {point.megabytes:.0f} MB")
        series[name] = (values, points)
        result[f"{name}_exponent"] = exponent(values, [p.seconds for p in points])
        result[f"{name}_memory_exponent"] = exponent(values, [p.megabytes for p in points])
    if figure is not None:
        from sgc_experiments.figures.style import save_png, styled

        save_png(styled(draw)(series, result), figure)
    return result


def evaluation_seconds(side: int) -> float:
    """One network evaluation of an image, in a batch."""
    network = ScoreNetwork(2, blocks=1).eval()
    z, log_snr = torch.randn(_BATCH, 1, side, side), torch.zeros(_BATCH)
    classes = torch.zeros(_BATCH, dtype=torch.long)
    with torch.no_grad():
        return _fastest(lambda: network(z, log_snr, classes)) / _BATCH


def classification_seconds(classes: int) -> float:
    """All classes of an image, 4 draws each."""
    network = ScoreNetwork(classes, blocks=1).eval()
    images = torch.randn(_BATCH, 1, _SIDE, _SIDE)
    draws = make_draws(images.shape[1:], LogSNRDensity.uniform(0, 8), _DRAWS)
    return _fastest(lambda: squared_errors(network, images, draws)) / _BATCH


def epoch_seconds(count: int) -> float:
    """An epoch's batches from a memory-mapped file, as the training loop takes them."""
    labels = np.arange(count) % 2
    order = BatchOrder(labels, batch_size=_BATCH, balanced=True, seed=0)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.npy"
        shape = (count, _SIDE, _SIDE)
        np.lib.format.open_memmap(path, "w+", dtype=np.uint16, shape=shape).flush()
        images = np.load(path, mmap_mode="r")
        started = time.perf_counter()
        for step in range(count // _BATCH):
            batch = to_model_range(images[order.batch(step)])
            augment(batch, AugmentationSettings(), generator)
        return time.perf_counter() - started


def _fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _apart(task: Callable[[int], float], value: int) -> Point:
    """Run a task in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_point, (task, value))


def _point(task: Callable[[int], float], value: int) -> Point:
    seconds = task(value)
    return Point(seconds, peak_megabytes())


def exponent(values: Sequence[int], costs: Sequence[float]) -> float:
    """The power b of cost ∝ value^b, by least squares in logarithms on the upper half."""
    upper = slice(len(values) // 2 - (len(values) < 4), None)
    return float(np.polyfit(np.log(values[upper]), np.log(costs[upper]), 1)[0])


def draw(series: dict[str, tuple[Sequence[int], list[Point]]], result: Result) -> "Figure":
    """Time above, memory below, each against what grows, with the fitted exponent."""
    from matplotlib.figure import Figure

    from sgc_experiments.figures.style import GREY, PALETTE

    figure = Figure(figsize=(10, 5.6))
    panels = figure.subplots(2, 3, sharex="col")
    texts = {
        "resolution": ("side of the image (pixels)", "time per evaluation (s)"),
        "classes": ("number of classes", "time per image (s)"),
        "images": ("training images", "time per epoch of batches (s)"),
    }
    for column, (name, (values, points)) in enumerate(series.items()):
        below, label = texts[name]
        rows = (("", label, "seconds"), ("_memory", "peak memory (MB)", "megabytes"))
        for row, (kind, text, attribute) in enumerate(rows):
            axes, power = panels[row, column], result[f"{name}{kind}_exponent"]
            costs = [getattr(point, attribute) for point in points]
            axes.loglog(values, costs, "o-", color=PALETTE[row])
            if attribute == "megabytes":
                axes.set_yscale("linear")
                axes.set_ylim(0, 1.1 * max(costs))
            axes.set_title(f"∝ value$^{{{power:.2f}}}$", color=GREY)
            axes.set_ylabel(text)
        _plain_ticks(panels[1, column], values)
        panels[1, column].set_xlabel(below)
    return figure


def _plain_ticks(axes: "Axes", values: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    shown = values if len(values) <= 6 else values[::2]
    axes.set_xticks(shown, [f"{value:,}" for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def main() -> None:
    """Parse the command line, measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take at most a minute")
    parser.add_argument("--figure", type=Path, help="a PNG file to draw")
    arguments = parser.parse_args()
    print(json_line(measure(QUICK if arguments.quick else FULL, arguments.figure)))


if __name__ == "__main__":
    main()
