"""Sheets of images: what the model generates, and where in an image it sees its evidence."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from sgc_experiments.errors import UserError
from sgc_experiments.figures.style import PALETTE, signed, styled

_BOX_COLOR = "#F0E442"  # the yellow of the palette: seen on grey and on both ends of the map
_DIVERGING = "RdBu_r"
_COLUMNS = 4


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def sample_sheet(
    real: np.ndarray,
    real_labels: NDArray[np.integer],
    generated: np.ndarray,
    generated_labels: NDArray[np.integer],
    classes: Sequence[str],
    *,
    per_class: int = 6,
) -> Figure:
    """Real images on the left, generated ones on the right, one row per class.

    All share one grey scale, the range of the real images, so that brightness can be compared.

    Args:
        real: shape (N, H, W), any numeric type.
        real_labels: class indices, shape (N,).
        generated: shape (M, H, W), in the units of `real`.
        generated_labels: class indices, shape (M,).
        classes: names of the classes.
        per_class: greatest number of images on either side of a row; the first ones are shown.
    """
    low, high = float(np.min(real)), float(np.max(real))
    sides = (("real", real, real_labels), ("generated", generated, generated_labels))
    figure = Figure(figsize=(1.0 * 2 * per_class + 1.1, 1.02 * len(classes) + 0.5))
    for part, (title, images, labels) in zip(
        figure.subfigures(1, 2, squeeze=False, wspace=0.03)[0], sides, strict=True
    ):
        part.suptitle(title, fontsize=12, fontweight="bold")
        grid = part.subplots(len(classes), per_class, squeeze=False)
        for c, row in enumerate(grid):
            chosen = images[np.flatnonzero(np.asarray(labels) == c)[:per_class]]
            for axes in row:
                _bare(axes)
            for axes, image in zip(row, chosen, strict=False):
                axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            row[0].set_ylabel(classes[c], fontsize=11)
        part.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure


class Explanation(NamedTuple):
    """One image with what the classifier makes of it.

    Attributes:
        image: shape (H, W).
        evidence: contribution of each pixel to the log-odds of class 1, in nats, shape (H, W).
        box: lesion (x0, y0, x1, y1) in pixels of `image`; None or NaN if there is none.
        outcome: such as "false positive".
        log_odds: posterior log-odds of class 1.
        standard_error: of the log-odds.
        remark: why this image is shown, such as "typical".
    """

    image: np.ndarray
    evidence: NDArray[np.floating]
    box: Sequence[float] | None
    outcome: str
    log_odds: float
    standard_error: float
    remark: str = ""


@styled
def explanation_sheet(
    cases: Sequence[Explanation], *, classes: Sequence[str] = ("benign", "malignant")
) -> Figure:
    """Images with their lesion above the same images under the map of the log-odds.

    Single pixels are too noisy to read: the maps are smoothed over a thirty-second of the image's
    side. Their colours are centred at 0 and shared by all cases; where the evidence is weak, the
    image shows through. The posterior stands below, with the interval that the standard error of
    the log-odds leaves it.

    Args:
        cases: four to a row.
        classes: names of class 0 and 1.

    Raises:
        UserError: no case.
    """
    if not cases:
        raise UserError("There is no image to explain.")
    columns = min(len(cases), _COLUMNS)
    blocks = -(-len(cases) // columns)
    height, width = cases[0].image.shape
    figure = Figure(
        figsize=(max(2.0 * columns + 1.2, 4.2), blocks * (3.9 * height / width + 1.0) + 0.4)
    )
    grid = figure.subplots(2 * blocks, columns, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.03, wspace=0.02, hspace=0.01)
    maps = [_per_percent(case.evidence) for case in cases]
    # One strong spot must not make all other evidence invisible.
    strongest = float(np.quantile(np.abs(maps), 0.99)) or 1.0
    scale = Normalize(-strongest, strongest)
    for axes in grid.flat:
        _bare(axes)
    for k, (case, evidence) in enumerate(zip(cases, maps, strict=True)):
        block, column = divmod(k, columns)
        _draw_case(grid[2 * block, column], grid[2 * block + 1, column], case, evidence, scale)
    colors = ScalarMappable(norm=scale, cmap=_DIVERGING)
    bar = figure.colorbar(colors, ax=grid, shrink=0.6, aspect=30, pad=0.02, extend="both")
    bar.set_label(f"Evidence for {classes[1]} (nats per 1 % of the image)")
    figure.legend(
        handles=[Patch(fill=False, edgecolor=_BOX_COLOR, linewidth=2, label="lesion")],
        loc="outside lower left", frameon=True, facecolor="#444444", labelcolor="white",
    )  # fmt: skip
    return figure


def _per_percent(evidence: NDArray[np.floating]) -> NDArray[np.floating]:
    """Smooth a map, and express it per hundredth of the image, whatever its resolution."""
    smooth = gaussian_filter(np.asarray(evidence, np.float64), max(evidence.shape) / 32)
    scaled: np.ndarray = smooth * evidence.size / 100
    return scaled


def _draw_case(
    above: Axes,
    below: Axes,
    case: Explanation,
    evidence: NDArray[np.floating],
    scale: Normalize,
) -> None:
    for axes in (above, below):
        axes.imshow(case.image, cmap="gray")
    overlay = matplotlib.colormaps[_DIVERGING](scale(evidence))
    overlay[..., 3] = 0.9 * np.sqrt(np.clip(np.abs(evidence) / scale.vmax, 0, 1))
    below.imshow(overlay, interpolation="bilinear")
    if case.box is not None and np.isfinite(case.box).all():
        x0, y0, x1, y1 = case.box
        for axes in (above, below):
            axes.add_patch(
                Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False,
                          edgecolor=_BOX_COLOR, linewidth=1.4)
            )  # fmt: skip
    color = PALETTE[2] if case.outcome.startswith("true") else PALETTE[1]
    remark = f"\n({case.remark})" if case.remark else ""
    above.set_title(case.outcome + remark, color=color, loc="center", fontsize=11)
    spread = 1.96 * case.standard_error
    p, low, high = expit([case.log_odds, case.log_odds - spread, case.log_odds + spread])
    below.set_xlabel(
        f"p = {p:.2f} ({low:.2f}–{high:.2f})\n"
        f"log-odds {signed(case.log_odds, 1)} ± {case.standard_error:.1f}",
        fontsize=10,
    )
