"""Figures of a search over parameters: its course, what mattered, where the good values lie.

All take the table of trials: `number`, `state` ("complete", "pruned", …), `defaults` (whether the
trial was that of the default configuration), `val_auc`, `val_bits_per_dim`, `last_auc`, and a
column `param.<name>` per parameter, missing where it did not apply.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sgc_experiments.errors import UserError
from sgc_experiments.figures.style import GREY, PALETTE, canvas, styled

_LABELS = {
    "val_auc": "Validation AUC",
    "val_bits_per_dim": "Validation bits per dimension",
}
_BETTER_IS_MORE = {"val_auc": True, "val_bits_per_dim": False}
_PREFIX = "param."
_MAP = "cividis"  # even in lightness, and the same to colour-blind eyes
_COLUMNS = 4


@styled
def tuning_history(trials: pd.DataFrame, *, metric: str = "val_auc") -> Figure:
    """Value of every trial, and the best so far.

    Raises:
        UserError: no trial was completed.
    """
    complete = _complete(trials, metric)
    figure, axes = canvas(6.6, 4.2)
    best = complete[metric].cummax() if _BETTER_IS_MORE[metric] else complete[metric].cummin()
    axes.step(
        complete["number"], best, where="post", color=PALETTE[0], label="best so far", zorder=1
    )
    axes.scatter(complete["number"], complete[metric], color=PALETTE[0], s=32, label="complete")
    pruned = trials[(trials["state"] == "pruned") & trials["last_auc"].notna()]
    if metric == "val_auc" and len(pruned):
        axes.scatter(
            pruned["number"], pruned["last_auc"], color=PALETTE[1], marker="X", s=36,
            label="pruned, by few draws at its last validation",
        )  # fmt: skip
    _mark_defaults(axes, complete, complete["number"], complete[metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="Trial", ylabel=_LABELS[metric])
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    return figure


@styled
def tuning_importance(importances: Mapping[str, float]) -> Figure:
    """Share of the variance of the objective that each parameter explains (fANOVA).

    Raises:
        UserError: no parameter.
    """
    if not importances:
        raise UserError("Importances need at least two complete trials that differ.")
    names = list(importances)[::-1]
    figure, axes = canvas(6.2, 0.9 + 0.3 * len(names))
    values = [importances[name] for name in names]
    axes.barh(names, values, color=PALETTE[0], height=0.65)
    for place, value in enumerate(values):
        axes.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=9)
    axes.grid(visible=False, axis="y")
    axes.set(
        xlabel="Share of the variance explained (fANOVA)",
        ylabel="Parameter",
        xlim=(0, max(values) * 1.15 + 0.02),
    )
    return figure


@styled
def tuning_slices(
    trials: pd.DataFrame, *, metric: str = "val_auc", log: Sequence[str] = ()
) -> Figure:
    """Objective against each parameter, one panel each, coloured by the order of the trials.

    Args:
        trials: see the head of this module.
        metric: the objective.
        log: parameters to draw on a logarithmic axis.

    Raises:
        UserError: no trial was completed.
    """
    complete = _complete(trials, metric)
    names = _varied(complete)
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(2.5 * _COLUMNS, 0.7 + 2.3 * rows))
    panels = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False)
    colours = ScalarMappable(Normalize(0, max(1, int(trials["number"].max()))), _MAP)
    for axes, name in zip(panels.flat, names, strict=False):
        there = complete[complete[_PREFIX + name].notna()]
        places, ticks = _places(there[_PREFIX + name])
        axes.scatter(
            places, there[metric], c=colours.to_rgba(there["number"].to_numpy(float)), s=30,
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        if ticks:
            turned = {"rotation": 30, "ha": "right"} if len("".join(ticks)) > 14 else {}
            axes.set_xticks(range(len(ticks)), ticks, **turned)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        elif name in log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.margins(x=0.2)
        axes.set_xlabel(name)
        axes.tick_params(labelsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel(_LABELS[metric])
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    whole = MaxNLocator(integer=True)
    figure.colorbar(colours, ax=panels, label="Trial", shrink=0.8, aspect=30, ticks=whole)
    return figure


@styled
def tuning_parallel(
    trials: pd.DataFrame, *, metric: str = "val_auc", log: Sequence[str] = ()
) -> Figure:
    """One line per complete trial through the values of all its parameters, coloured by its value.

    Args:
        trials: see the head of this module.
        metric: the objective, which is the last axis.
        log: parameters that are spaced by their logarithm.

    Raises:
        UserError: no trial was completed.
    """
    complete = _complete(trials, metric)
    names = _varied(complete)
    columns = [*(complete[_PREFIX + name] for name in names), complete[metric]]
    figure, axes = canvas(1.6 + 1.05 * len(columns), 4.6)
    heights = [
        _draw_axis(axes, place, column, log=name in log)
        for place, (name, column) in enumerate(zip([*names, metric], columns, strict=True))
    ]
    low, high = complete[metric].min(), complete[metric].max()
    high = max(high, low + 1e-3)
    colours = ScalarMappable(Normalize(low, high), _MAP)
    order = np.argsort(complete[metric].to_numpy())
    for row in order if _BETTER_IS_MORE[metric] else order[::-1]:  # the best on top
        line = np.array([height[row] for height in heights])
        there = np.isfinite(line)
        axes.plot(
            np.flatnonzero(there), line[there], color=colours.to_rgba(complete[metric].iloc[row]),
            marker="o", markersize=3, linewidth=1.4, alpha=0.85,
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), [*names, _LABELS[metric]], rotation=30, ha="right")
    axes.set(xlim=(-0.3, len(columns) - 0.3), ylim=(-0.06, 1.06), yticks=[], ylabel="Value")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    ticks = np.linspace(low, high, 5)
    figure.colorbar(colours, ax=axes, label=_LABELS[metric], ticks=ticks, format="%.3f")
    return figure


@styled
def tuning_pareto(trials: pd.DataFrame) -> Figure:
    """Validation AUC against bits per dimension, with the trials that no other beats in both.

    Raises:
        UserError: no trial was completed.
    """
    complete = _complete(trials, "val_auc")
    auc, bits = complete["val_auc"].to_numpy(), complete["val_bits_per_dim"].to_numpy()
    front = pareto_front(auc, -bits)
    figure, axes = canvas(6.0, 4.4)
    axes.scatter(bits[~front], auc[~front], color=GREY, s=28, label="beaten in both")
    order = np.argsort(bits[front])
    axes.plot(
        bits[front][order], auc[front][order], color=PALETTE[0], marker="o", label="Pareto front"
    )
    for number, x, y in zip(complete["number"][front], bits[front], auc[front], strict=True):
        axes.annotate(str(number), (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8)
    _mark_defaults(axes, complete, bits, auc)
    axes.set(xlabel=_LABELS["val_bits_per_dim"], ylabel=_LABELS["val_auc"])
    axes.margins(0.08)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    return figure


def pareto_front(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which of N points no other point reaches in both values and exceeds in one; bool (N,)."""
    at_least: np.ndarray = (first >= first[:, None]) & (second >= second[:, None])
    better: np.ndarray = (first > first[:, None]) | (second > second[:, None])
    front: np.ndarray = ~(at_least & better).any(axis=1)
    return front


def _complete(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    complete = trials[(trials["state"] == "complete") & trials[metric].notna()]
    if complete.empty:
        raise UserError("There is no complete trial to draw.")
    return complete.sort_values("number").reset_index(drop=True)


def _varied(complete: pd.DataFrame) -> list[str]:
    """Parameters with more than one value; all of them if there is none."""
    columns = [c for c in complete.columns if c.startswith(_PREFIX) and complete[c].notna().any()]
    varied = [c for c in columns if complete[c].nunique() > 1]
    return [column.removeprefix(_PREFIX) for column in varied or columns]


def _places(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Where values lie on an axis, and the ticks of a choice ([] for numbers)."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=float), []
    ticks = sorted(set(values.dropna()), key=_by_size)
    index = {label: float(place) for place, label in enumerate(ticks)}
    return np.array([index.get(value, np.nan) for value in values]), ticks


def _by_size(label: str) -> tuple[float, str]:
    """Numbers, also those of channels, by size; words by the alphabet."""
    try:
        return float(label.split("-")[0]), label
    except ValueError:
        return np.inf, label


def _draw_axis(axes: Axes, place: int, values: pd.Series, *, log: bool) -> np.ndarray:
    """Draw one vertical axis with its ticks; the height of each value, from 0 to 1."""
    positions, ticks = _places(values)
    if ticks:
        heights = (positions + 0.5) / len(ticks)
        marks = {label: (k + 0.5) / len(ticks) for k, label in enumerate(ticks)}
    else:
        scaled = np.log(positions) if log else positions
        low, high = np.nanmin(scaled), np.nanmax(scaled)
        span = high - low or 1.0
        heights = (scaled - low) / span if high > low else np.where(np.isnan(scaled), np.nan, 0.5)
        at = np.linspace(low, high, 3) if high > low else np.array([low])
        shown = np.exp(at) if log else at
        marks = {f"{v:.3g}": (a - low) / span or 0.0 for v, a in zip(shown, at, strict=True)}
        if high == low:
            marks = dict.fromkeys(marks, 0.5)
    axes.axvline(place, color="#BBBBBB", linewidth=1, zorder=0)
    for label, height in marks.items():
        axes.text(
            place + 0.06, height, label, fontsize=7.5, va="center", zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    return heights


def _mark_defaults(
    axes: Axes, complete: pd.DataFrame, x: Sequence[float], y: Sequence[float]
) -> None:
    chosen = complete["defaults"].to_numpy(dtype=bool)
    if chosen.any():
        axes.scatter(
            np.asarray(x)[chosen], np.asarray(y)[chosen], s=130, facecolor="none",
            edgecolor=PALETTE[6], linewidth=1.4, label="the defaults", zorder=3,
        )  # fmt: skip
