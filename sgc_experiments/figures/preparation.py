"""How a dataset was prepared: what is in it, and what each step made of some images."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sgc_experiments.figures.style import GREY, PALETTE, styled

_TITLES = {
    "stored": "stored values",
    "calibrated": "calibrated",
    "breast": "breast, oriented",
    "prepared": "prepared",
}


@styled
def preparation_stages(
    examples: Sequence[Mapping[str, np.ndarray]], captions: Sequence[str]
) -> Figure:
    """One row per image, one column per step of the preparation, the lesion outlined at the end.

    Args:
        examples: pictures in [0, 1] by the names "stored", "calibrated", "breast", "prepared", and
            "box", (4,) in pixels of "prepared", NaN for none.
        captions: one per image.
    """
    figure = Figure(figsize=(2.1 * len(_TITLES) + 0.6, 2.3 * len(examples) + 0.4))
    grid = figure.subplots(len(examples), len(_TITLES), squeeze=False)
    for axes, title in zip(grid[0], _TITLES.values(), strict=True):
        axes.set_title(title)
    for row, example, caption in zip(grid, examples, captions, strict=True):
        for axes, name in zip(row, _TITLES, strict=True):
            axes.imshow(example[name], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(caption)
        x0, y0, x1, y1 = example["box"]
        if np.isfinite(x0):
            corner, width, height = (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0
            row[-1].add_patch(
                Rectangle(corner, width, height, fill=False, edgecolor=PALETTE[1], linewidth=1.5)
            )
    return figure


@styled
def counts(table: pd.DataFrame) -> Figure:
    """Number of images by each property, one panel per property.

    Args:
        table: columns `property`, `value`, `label` (name of the class) and `images`.
    """
    names = list(dict.fromkeys(table["property"]))
    classes = list(dict.fromkeys(table["label"]))
    rows = [table.loc[table["property"] == name, "value"].nunique() for name in names]
    figure = Figure(figsize=(6.2, 0.9 * len(names) + 0.34 * sum(rows) + 0.6))
    panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=rows, sharex=True)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        part = table[table["property"] == name]
        wide = part.pivot_table(index="value", columns="label", values="images", sort=False)
        wide = wide.reindex(columns=classes).fillna(0).sort_index(ascending=False)
        left = np.zeros(len(wide))
        for colour, label in zip(PALETTE, classes, strict=False):
            axes.barh(wide.index, wide[label], left=left, color=colour, label=label)
            left += wide[label].to_numpy()
        for y, total in enumerate(left):
            axes.text(total, y, f" {total:.0f}", va="center", color=GREY)
        axes.set_ylabel(name)
        axes.grid(visible=False, axis="y")
    panels[-1].set_xlabel("Images")
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(classes))
    return figure
