"""One style for every figure: colours, sizes, and a PNG small enough to keep.

Colours are those of Okabe & Ito (2008, https://jfly.uni-koeln.de/color/), which people with any of
the common colour-vision deficiencies can tell apart; models differ in line style and marker too, so
that a grey print still reads. Figures are made without pyplot: nothing global, nothing to close.
"""

import functools
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType
from PIL import Image

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6E6E6E"
BAND_ALPHA = 0.18

_RC: dict[RcKeyType, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}
_RESOLUTIONS = (150, 110, 80)  # dots per inch
_LEVELS = (256, 64)  # per colour channel; 64 are hard to tell from 256

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Look(NamedTuple):
    """How one model is drawn."""

    color: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str


def looks() -> Iterator[Look]:
    """Colour, line style and marker of the first, second, … model, without end."""
    k = 0
    while True:
        yield Look(PALETTE[k % 7], LINES[k % 7], MARKERS[(k + k // 7) % 7])
        k += 1


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a drawing function under the style, and leave the caller's matplotlib as it was."""

    @functools.wraps(draw)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Figure of the given size in inches with one pair of axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def signed(number: float, decimals: int) -> str:
    """Format a number with its sign, a minus being a minus and not a hyphen."""
    return f"{number:+.{decimals}f}".replace("-", "−")


def unit_square(axes: Axes) -> None:
    """Rates on both axes, from 0 to 1 with a hair's breadth around, drawn square."""
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")


@styled
def save_png(figure: Figure, path: Path | str, *, max_kilobytes: int = 150) -> Path:
    """Save as PNG, as fine as the size allows.

    Args:
        figure: any figure of this package.
        path: file to write; its folder exists.
        max_kilobytes: upper bound (1 kB = 1,000 bytes). A figure that exceeds it in every way is
            written in the smallest.

    Returns:
        The path.
    """
    path = Path(path)
    for resolution, levels in itertools.product(_RESOLUTIONS, _LEVELS):
        if levels == _LEVELS[0]:
            drawn = _draw(figure, resolution)
        step = 255 / (levels - 1)
        coarse = [round(round(value / step) * step) for value in range(256)]
        packed = io.BytesIO()
        drawn.point(coarse * 3).save(packed, format="png", dpi=(resolution, resolution))
        if packed.tell() <= max_kilobytes * 1000:
            break
    path.write_bytes(packed.getvalue())
    return path


def _draw(figure: Figure, resolution: int) -> Image.Image:
    before = figure.dpi
    figure.set_dpi(resolution)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_dpi(before)
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
