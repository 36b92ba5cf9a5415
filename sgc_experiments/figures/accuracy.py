"""How well a model tells the classes apart, and whether its probabilities can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sgc_experiments.curves import (
    precision_recall_band,
    reliability_table,
    roc_band,
)
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import N_BOOTSTRAP, evaluate
from sgc_experiments.figures.style import (
    BAND_ALPHA,
    GREY,
    PALETTE,
    canvas,
    looks,
    styled,
    unit_square,
)
from sgc_experiments.predictions import check_predictions, each_once, n_repeats

# More bands than these hide each other; the intervals in the legend remain.
_MOST_BANDS = 3


def _legend(axes: Axes, **placement: Any) -> None:
    axes.legend(handlelength=2.6, borderaxespad=0.6, **placement)


def _quoted(name: str, short: str, row: pd.Series) -> str:
    """Legend entry, e.g. "SGC: AUC 0.85 (0.81–0.89)"."""
    limits = f" ({row['low']:.2f}–{row['high']:.2f})" if np.isfinite(row["low"]) else ""
    return f"{name}: {short} {row['value']:.2f}{limits}"


def _metric(frame: pd.DataFrame, metric: str, n_bootstrap: int, seed: int) -> pd.Series:
    table = evaluate(frame, None, n_bootstrap=n_bootstrap, seed=seed).set_index("metric")
    return table.loc[metric]


@styled
def roc(
    models: Mapping[str, pd.DataFrame], *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> Figure:
    """ROC curves with 95 % bands over patients and the AUC with its interval in the legend.

    Args:
        models: two-class predictions by name (for more classes: `predictions.one_vs_rest`). Bands
            are drawn for up to three. With folds, their mean curve is drawn (`curves.roc_band`).
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Raises:
        UserError: one class only.
    """
    figure, axes = canvas(5.4, 5.4)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance: AUC 0.50")
    for look, (name, frame) in zip(looks(), models.items(), strict=False):
        curve, band = roc_band(frame, n_bootstrap=n_bootstrap, seed=seed)
        x = "false_positive_rate"
        if len(models) <= _MOST_BANDS:
            axes.fill_between(
                band[x], band["low"], band["high"],
                color=look.color, alpha=BAND_ALPHA, linewidth=0,
            )  # fmt: skip
        label = _quoted(name, "AUC", _metric(frame, "auc", n_bootstrap, seed))
        axes.plot(
            curve[x],
            curve["true_positive_rate"],
            color=look.color,
            linestyle=look.line,
            label=label,
        )
    unit_square(axes)
    axes.set(
        xlabel="False-positive rate (1 − specificity)",
        ylabel="True-positive rate (sensitivity)",
    )
    _legend(axes, loc="lower right")
    return figure


@styled
def precision_recall(
    models: Mapping[str, pd.DataFrame], *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> Figure:
    """Precision-recall curves, average precision in the legend, the prevalence as a line.

    Arguments and errors as `roc`; the line is left out where prevalences differ.
    """
    figure, axes = canvas(5.4, 5.4)
    shares = {float(frame["label"].mean()) for frame in models.values()}
    if len(shares) == 1:  # each class against all others has a prevalence of its own
        share = shares.pop()
        axes.axhline(share, color=GREY, linewidth=1, linestyle=":", label=f"prevalence {share:.2f}")
    for look, (name, frame) in zip(looks(), models.items(), strict=False):
        curve, band = precision_recall_band(frame, n_bootstrap=n_bootstrap, seed=seed)
        if len(models) <= _MOST_BANDS:
            axes.fill_between(
                band["recall"], band["low"], band["high"],
                color=look.color, alpha=BAND_ALPHA, linewidth=0,
            )  # fmt: skip
        recall = np.concatenate([[0], curve["recall"]])
        precision = np.concatenate([curve["precision"][:1], curve["precision"]])
        label = _quoted(name, "AP", _metric(frame, "average_precision", n_bootstrap, seed))
        axes.step(
            recall, precision, where="pre", color=look.color, linestyle=look.line, label=label
        )
    unit_square(axes)
    axes.set(xlabel="Recall (sensitivity)", ylabel="Precision (positive predictive value)")
    _legend(axes, loc="best")
    return figure


@styled
def reliability(
    models: Mapping[str, pd.DataFrame],
    *,
    positive: str = "malignant",
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Figure:
    """Observed frequency against predicted probability, above the number of images in each bin.

    Args:
        models: two-class predictions by name, such as before and after calibration.
        positive: name of class 1, for the axes.
        n_bootstrap: number of resamples of the patients.
        seed: of the resamples.

    Raises:
        UserError: one class only.
    """
    figure = Figure(figsize=(5.4, 6.6))
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect calibration")
    width = 0.085 / len(models)
    for k, (look, (name, frame)) in enumerate(zip(looks(), models.items(), strict=False)):
        table = reliability_table(frame, n_bootstrap=n_bootstrap, seed=seed)
        ece = _metric(frame, "ece", n_bootstrap, seed)
        spread = np.abs(table[["low", "high"]].to_numpy().T - table["frequency"].to_numpy())
        axes.errorbar(
            table["probability"], table["frequency"], yerr=spread, color=look.color,
            linestyle=look.line, marker=look.marker, linewidth=1.4, elinewidth=1,
            label=_quoted(name, "ECE", ece),
        )  # fmt: skip
        middle = (table["left"] + table["right"]) / 2 + (k - (len(models) - 1) / 2) * width
        counts.bar(middle, table["n_images"], width=width * 0.92, color=look.color)
    unit_square(axes)
    # A square here and a bar chart below cannot share an x axis that is stretched.
    axes.set_aspect("auto")
    axes.set_ylabel(f"Observed frequency of {positive}")
    counts.set(xlabel=f"Predicted probability of {positive}", ylabel="Images per bin")
    counts.locator_params(axis="y", integer=True)
    counts.grid(visible=False, axis="x")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", frameon=False, handlelength=3
    )
    return figure


@styled
def abstention(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """AUC of the images that are answered, against their share, the most certain ones first.

    Args:
        tables: `curves.abstention_table` of each model, by name.
    """
    figure, axes = canvas(5.8, 4.2)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance: AUC 0.50")
    for look, (name, table) in zip(looks(), tables.items(), strict=False):
        coverage = 100 * table["coverage"]
        if len(tables) <= _MOST_BANDS:
            axes.fill_between(
                coverage, table["low"], table["high"],
                color=look.color, alpha=BAND_ALPHA, linewidth=0,
            )  # fmt: skip
        axes.plot(
            coverage, table["auc"], color=look.color, linestyle=look.line, marker=look.marker,
            label=_quoted(name, "AUC of all", table.iloc[-1].rename({"auc": "value"})),
        )  # fmt: skip
    axes.set(
        xlim=(102, 18),  # leaving out ever more images, as one reads
        ylim=(min(0.45, axes.get_ylim()[0]), 1.015),
        xlabel="Images answered, the most certain first (%)",
        ylabel="AUC of the answered images",
    )
    _legend(axes, loc="lower left")
    return figure


@styled
def confusion(
    labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str], *, repeats: float = 1
) -> Figure:
    """Confusion matrix: counts, and the percentage of each row (of the images of a true class).

    Args:
        labels: class indices, shape (N,).
        predicted: class indices, shape (N,); with two classes from the threshold chosen on the
            validation images.
        classes: names, C of them.
        repeats: rows per image, which the counts are divided by.

    Raises:
        UserError: no image, or an index that names no class.
    """
    pairs = np.column_stack([np.asarray(labels), np.asarray(predicted)]).astype(int)
    n_classes = len(classes)
    if not len(pairs) or pairs.min() < 0 or pairs.max() >= n_classes:
        raise UserError(f"A confusion matrix needs class indices 0 … {n_classes - 1}.")
    flat = np.bincount(pairs[:, 0] * n_classes + pairs[:, 1], minlength=n_classes**2)
    matrix = flat.reshape(n_classes, n_classes) / repeats
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1 / repeats)
    text = np.array([
        [f"{np.round(n, 1):g}\n{p:.0f} %" for n, p in zip(*rows, strict=True)]
        for rows in zip(matrix, percent, strict=True)
    ])  # fmt: skip
    side = 1.15 * n_classes + 1.9
    figure, axes = canvas(side + 0.9, side)
    totals = [f"{c}\n(n = {n:g})" for c, n in zip(classes, matrix.sum(axis=1), strict=True)]
    sns.heatmap(
        percent, annot=text, fmt="", cmap="Blues", vmin=0, vmax=100, square=True, linewidths=2,
        xticklabels=list(classes), yticklabels=totals, annot_kws={"fontsize": 12}, ax=axes,
        cbar_kws={"label": "Share of the true class (%)", "shrink": 0.85},
    )  # fmt: skip
    axes.set(xlabel="Predicted class", ylabel="True class")
    axes.tick_params(length=0)
    axes.tick_params(axis="y", rotation=0)
    return figure


@styled
def log_odds_histogram(
    predictions: pd.DataFrame, classes: Sequence[str] = ("benign", "malignant")
) -> Figure:
    """Distribution of the log-odds in each true class, every image as a tick below.

    Args:
        predictions: two-class table; one class is enough.
        classes: names of class 0 and 1.
    """
    frame = check_predictions(predictions)
    if "log_odds" not in frame.columns:
        raise UserError("A histogram of log-odds needs two classes; use one_vs_rest for more.")
    figure, axes = canvas(6.2, 4.0)
    number = each_once(frame)["label"].value_counts()
    names = {c: f"{name} (n = {number.get(c, 0)})" for c, name in enumerate(classes)}
    shown = frame[["log_odds"]].assign(true_class=frame["label"].map(names))
    share = np.full(len(frame), 1 / n_repeats(frame))  # of an image in its rows
    hue = {
        "data": shown, "x": "log_odds", "hue": "true_class",
        "hue_order": list(names.values()), "palette": list(PALETTE[:2]), "ax": axes,
    }  # fmt: skip
    bins = int(np.clip(2 * np.sqrt(len(frame)), 5, 40))
    sns.histplot(**hue, weights=share, bins=bins, element="step", alpha=0.3, linewidth=1.6)
    sns.rugplot(**hue, height=-0.025, clip_on=False, alpha=0.5, legend=False)
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.tick_params(axis="x", pad=9)
    axes.set_ylim(top=1.08 * axes.get_ylim()[1])  # the legend and the rug leave no margin
    axes.locator_params(axis="y", integer=True)
    axes.set(
        xlabel=f"Log-odds of {classes[1]} against {classes[0]} (nats)", ylabel="Number of images"
    )
    if (legend := axes.get_legend()) is not None:
        legend.set_title("true class")
    return figure
