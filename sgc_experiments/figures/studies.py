"""Figures over many steps, runs or models: training, learning curves, comparisons, cost."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from sgc_experiments.errors import UserError
from sgc_experiments.figures.style import (
    GREY,
    LINES,
    PALETTE,
    Look,
    canvas,
    looks,
    signed,
    styled,
)

_NAMES = {
    "auc": "AUC",
    "macro_auc": "Macro AUC (one versus rest)",
    "average_precision": "Average precision",
    "ece": "Expected calibration error",
    "brier": "Brier score",
    "log_loss": "Log loss (nats)",
}
_CHANCE = {"auc": 0.5, "macro_auc": 0.5}
_SUBSETS = ("train", "validation")


def readable(metric: str) -> str:
    """Name of a metric as it stands on an axis."""
    plain = metric.replace("_", " ")
    return _NAMES.get(metric, plain[:1].upper() + plain[1:])


@styled
def training_curves(history: pd.DataFrame, *, best_step: int | None = None) -> Figure:
    """One panel per quantity against the optimiser step; training and validation share a panel.

    Args:
        history: column `step` and one column per series; `train_<quantity>` and
            `validation_<quantity>` are drawn together, any other column alone. NaN where a series
            was not measured.
        best_step: step whose weights were kept; marked in every panel.

    Raises:
        UserError: no series.
    """
    panels: dict[str, list[str]] = {}
    for column in history.columns.drop("step", errors="ignore"):
        subset, _, quantity = str(column).partition("_")
        quantity = quantity if subset in _SUBSETS and quantity else str(column)
        panels.setdefault(quantity, []).append(str(column))
    if not panels or "step" not in history.columns:
        raise UserError("Training curves need a column step and at least one series.")
    figure = Figure(figsize=(6.2, 0.6 + 2.3 * len(panels)))
    column_of_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, columns) in zip(column_of_axes, panels.items(), strict=True):
        for column in columns:
            series = history[["step", column]].dropna()
            k = 1 if column.startswith("validation") else 0
            few = len(series) <= 40
            sns.lineplot(
                x=series["step"].to_numpy(), y=series[column].to_numpy(), color=PALETTE[k],
                linestyle=LINES[k], marker="o" if few else None, errorbar=None, ax=axes,
                label=column.partition("_")[0] if quantity != column else None,
            )  # fmt: skip
        if best_step is not None:
            axes.axvline(best_step, color=GREY, linewidth=1, linestyle=":", label="weights kept")
        axes.set(xlabel="Optimiser step", ylabel=readable(quantity))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="best")
    return figure


@styled
def learning_curves(
    table: pd.DataFrame,
    *,
    axis_label: str = "Patients in training and validation",
    target: float | None = None,
) -> Figure:
    """Metric against training size with a 95 % band per model.

    Args:
        table: `model`, `size`, `metric`, `value`, `low`, `high`, as `LearningCurves.table` gives.
        axis_label: of the horizontal axis, which is logarithmic.
        target: value to mark, such as the AUC that a study needs.

    Raises:
        UserError: no row.
    """
    if table.empty:
        raise UserError("There is no finished cell to draw a learning curve from.")
    metric = str(table["metric"].iloc[0])
    figure, axes = canvas(6.6, 4.8)
    models = list(dict.fromkeys(table["model"]))
    for look, model in zip(looks(), models, strict=False):
        rows = table[table["model"] == model].sort_values("size")
        # With its edges drawn, a band can still be followed where several lie on each other.
        axes.fill_between(
            rows["size"], rows["low"], rows["high"], facecolor=to_rgba(look.color, 0.09),
            edgecolor=to_rgba(look.color, 0.7), linestyle=look.line, linewidth=0.8,
        )  # fmt: skip
        axes.plot(
            rows["size"], rows["value"], color=look.color, linestyle=look.line,
            marker=look.marker, label=model,
        )  # fmt: skip
        if len(rows) == 1:
            # A band needs two sizes; a single one shows its interval as a bar.
            axes.vlines(rows["size"], rows["low"], rows["high"], color=look.color)
    if metric in _CHANCE:
        axes.axhline(_CHANCE[metric], color=GREY, linewidth=1, linestyle=":", label="chance")
    if target is not None:
        axes.axhline(target, color=GREY, linewidth=1, linestyle="--", label=f"target {target:g}")
    _log_axis(axes, sorted(set(table["size"])))
    axes.set(xlabel=axis_label, ylabel=f"{readable(metric)} (95 % band)")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", frameon=False,
        ncols=min(4, len(models) + 1), handlelength=3,
    )  # fmt: skip
    return figure


def _log_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Logarithmic x axis with the sizes that were tried as its ticks."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


@styled
def label_efficiency(table: pd.DataFrame) -> Figure:
    """How many times the reference's patients each model needs, by the reference's patients.

    Args:
        table: `model`, `reference`, `size`, `factor`, `low`, `high`, `bound`, as
            `LearningCurves.label_efficiency` gives. An open marker with an arrow is a bound: the
            model is not there at its greatest size (up), or is at its smallest (down).

    Raises:
        UserError: no row.
    """
    if table.empty:
        raise UserError("There is no label efficiency to draw.")
    figure, axes = canvas(6.6, 4.4)
    models = list(dict.fromkeys(table["model"]))
    sizes = sorted(set(table["size"]))
    highest = 1.6 * max(table["factor"].max(), table["high"][np.isfinite(table["high"])].max())
    for k, (look, model) in enumerate(zip(_looks_beside_reference(), models, strict=False)):
        rows = table[table["model"] == model].sort_values("size")
        at = rows["size"] * 1.06 ** (k - (len(models) - 1) / 2)  # side by side
        axes.vlines(at, rows["low"], np.minimum(rows["high"], highest), color=look.color)
        for x, row in zip(at, rows.itertuples(), strict=True):
            axes.plot(
                x, row.factor, color=look.color, marker=look.marker, linestyle="none",
                markersize=7, markerfacecolor="white" if row.bound else look.color,
            )  # fmt: skip
            if row.bound:
                arrow = "↑" if row.bound == "at least" else "↓"
                axes.annotate(
                    arrow, (x, row.factor), xytext=(6, -4), textcoords="offset points",
                    color=look.color,
                )  # fmt: skip
        axes.plot([], [], color=look.color, marker=look.marker, label=model)
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":", label="as many")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(top=highest)
    _log_axis(axes, sizes)
    reference = table["reference"].iloc[0]
    axes.set(
        xlabel=f"Patients of {reference}",
        ylabel=f"Patients needed, as a multiple\nof those of {reference} (95 % interval)",
    )
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", frameon=False,
        ncols=min(4, len(models) + 1),
    )  # fmt: skip
    return figure


@styled
def forest(differences: pd.DataFrame) -> Figure:
    """Paired differences to a reference with intervals, the numbers beside them.

    Args:
        differences: `model`, `reference`, `metric`, `difference`, `low`, `high`, `p_holm`, and
            optionally `size`, as `comparison.paired_differences` and
            `LearningCurves.differences` give; one panel per metric.

    Raises:
        UserError: no row.
    """
    if differences.empty:
        raise UserError("There is no difference to draw.")
    metrics = list(dict.fromkeys(differences["metric"]))
    longest = differences["metric"].value_counts().max()
    figure = Figure(figsize=(7.6, (0.9 + 0.34 * longest) * len(metrics)))
    panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
    reference = differences["reference"].iloc[0]
    for axes, metric in zip(panels, metrics, strict=True):
        rows = differences[differences["metric"] == metric]
        _forest_panel(axes, rows)
        axes.set(
            xlabel=f"Difference in {_inline(metric)} to {reference} (95 % interval)",
            ylabel="Model" if "size" not in rows else "Model, size",
        )
    return figure


def _looks_beside_reference() -> Iterator[Look]:
    """The first look is the reference's, which other figures of the same models show."""
    return islice(looks(), 1, None)


def _inline(metric: str) -> str:
    name = readable(metric)
    return name if name.isupper() or name == _NAMES["brier"] else name[0].lower() + name[1:]


def _forest_panel(axes: Axes, rows: pd.DataFrame) -> None:
    places = np.arange(len(rows))[::-1]
    looks_of = dict(zip(dict.fromkeys(rows["model"]), _looks_beside_reference(), strict=False))
    numbers_at = 1.02
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    for place, row in zip(places, rows.itertuples(), strict=True):
        look = looks_of[row.model]
        spread = [[row.difference - row.low], [row.high - row.difference]]
        axes.errorbar(
            row.difference, place, xerr=np.maximum(spread, 0), color=look.color, marker=look.marker,
            markersize=6, elinewidth=1.6,
        )  # fmt: skip
        numbers = [signed(x, 3) for x in (row.difference, row.low, row.high)]
        p = "p < 0.001" if row.p_holm < 0.001 else f"p = {row.p_holm:.3f}"
        axes.text(
            numbers_at, place, f"{numbers[0]} ({numbers[1]} to {numbers[2]})  {p}",
            transform=axes.get_yaxis_transform(), va="center", fontsize=9,
        )  # fmt: skip
    names = rows["model"]
    if "size" in rows:
        names = [f"{m}, {s:g}" for m, s in zip(names, rows["size"], strict=True)]
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.text(
        numbers_at, len(rows) - 0.4, "difference (95 % interval), p after Holm",
        transform=axes.get_yaxis_transform(), va="bottom", fontsize=9, color=GREY,
    )  # fmt: skip


@styled
def cost(
    table: pd.DataFrame, *, axis_label: str = "Training time (s)", metric: str = "auc"
) -> Figure:
    """Metric of each model against what it costs.

    Args:
        table: `model`, `cost` (> 0), `value`, `low`, `high`.
        axis_label: what `cost` is, with its unit.
        metric: what `value` is.

    Raises:
        UserError: no row, or a cost that is not positive.
    """
    if table.empty or not (table["cost"] > 0).all():
        raise UserError("A cost figure needs at least one model, each with a positive cost.")
    figure, axes = canvas(6.2, 4.2)
    for look, row in zip(looks(), table.itertuples(), strict=False):
        axes.errorbar(
            row.cost, row.value, yerr=[[row.value - row.low], [row.high - row.value]],
            color=look.color, marker=look.marker, markersize=7, linestyle="none", elinewidth=1.4,
            label=row.model,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.15)
    narrow = table["cost"].max() < 10 * table["cost"].min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if narrow else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(xlabel=axis_label, ylabel=f"{readable(metric)} (95 % interval)")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(table)),
        frameon=False,
    )  # fmt: skip
    return figure
