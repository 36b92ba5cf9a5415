"""Sheets of images: what the model generates, and where in an image it sees its evidence."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.special import expit

from sgc_experiments.errors import UserError
from sgc_experiments.figures.style import PALETTE, signed, styled

_BOX_COLOR = "#F0E442"  # the yellow of the palette: seen on grey and on both ends of the map
_DIVERGING = "RdBu_r"


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def sample_sheet(
    real: NDArray,
    real_labels: NDArray[np.integer],
    generated: NDArray,
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
        figure.subfigures(1, 2, wspace=0.03), sides, strict=True
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
        evidence: contribution of each place to the log-odds of class 1, in nats, shape (h, w) of
            any resolution.
        box: lesion (x0, y0, x1, y1) in pixels of `image`; None or NaN if there is none.
        label: true class, 0 or 1.
        log_odds: posterior log-odds of class 1.
        standard_error: of the log-odds.
    """

    image: NDArray
    evidence: NDArray[np.floating]
    box: Sequence[float] | None
    label: int
    log_odds: float
    standard_error: float


def _outcome(case: Explanation, threshold: float) -> str:
    positive = expit(case.log_odds) >= threshold
    right = "true" if positive == (case.label == 1) else "false"
    return f"{right} {'positive' if positive else 'negative'}"


@styled
def explanation_sheet(
    cases: Sequence[Explanation],
    *,
    threshold: float = 0.5,
    classes: Sequence[str] = ("benign", "malignant"),
) -> Figure:
    """Images with their lesion above the same images under the map of the log-odds.

    The map's colours are centred at 0 and shared by all cases; where the evidence is weak, the
    image shows through. The posterior stands below with its standard error (by the delta method).

    Args:
        cases: one column each; eight at most read well.
        threshold: probability from which a case is called positive.
        classes: names of class 0 and 1.

    Raises:
        UserError: no case.
    """
    if not cases:
        raise UserError("There is no image to explain.")
    tallest = max(case.image.shape[0] / case.image.shape[1] for case in cases)
    figure = Figure(figsize=(max(1.75 * len(cases) + 1.1, 3.6), 3.3 * tallest + 1.1))
    grid = figure.subplots(2, len(cases), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.02, hspace=0.02)
    strongest = max(float(np.abs(case.evidence).max()) for case in cases) or 1.0
    scale = CenteredNorm(0, strongest)
    for (above, below), case in zip(grid.T, cases, strict=True):
        height, width = case.image.shape
        for axes in (above, below):
            axes.imshow(case.image, cmap="gray")
            _bare(axes)
            if case.box is not None and np.isfinite(case.box).all():
                x0, y0, x1, y1 = case.box
                axes.add_patch(
                    Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False,
                              edgecolor=_BOX_COLOR, linewidth=1.4)
                )  # fmt: skip
        overlay = matplotlib.colormaps[_DIVERGING](scale(case.evidence))
        overlay[..., 3] = 0.85 * np.abs(case.evidence) / strongest
        below.imshow(
            overlay, interpolation="bilinear", extent=(-0.5, width - 0.5, height - 0.5, -0.5)
        )
        color = PALETTE[1] if case.label == 1 else PALETTE[0]
        above.set_title(
            f"{_outcome(case, threshold)}\n({classes[case.label]})", color=color, fontsize=10
        )
        p = float(expit(case.log_odds))
        error = p * (1 - p) * case.standard_error
        below.set_xlabel(
            f"p = {p:.2f} ± {error:.2f}\n"
            f"log-odds {signed(case.log_odds, 1)} ± {case.standard_error:.1f}",
            fontsize=9,
        )
    colors = ScalarMappable(norm=scale, cmap=_DIVERGING)
    bar = figure.colorbar(colors, ax=grid, shrink=0.6, aspect=25, pad=0.02)
    bar.set_label(f"Evidence for {classes[1]} (nats per place)")
    return figure
