"""The figures that show how well a model tells the classes apart, of two classes or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sgc_experiments import figures
from sgc_experiments.bootstrap import Resampling
from sgc_experiments.curves import abstention_table, reliability_table
from sgc_experiments.evaluation import choose_thresholds
from sgc_experiments.predictions import class_names, class_probabilities, n_repeats, one_vs_rest
from sgc_experiments.tracking import TrackedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_curves(
    run: TrackedRun,
    model: str,
    validation: pd.DataFrame,
    test: pd.DataFrame,
    classes: Sequence[str],
    *,
    uncalibrated: pd.DataFrame | None = None,
    n_bootstrap: int,
    seed: int,
) -> None:
    """Log the figures of `result_figures` and their tables; arguments as there."""
    tables = result_tables(test, uncalibrated=uncalibrated, n_bootstrap=n_bootstrap, seed=seed)
    drawn = result_figures(
        model,
        validation,
        test,
        classes,
        uncalibrated=uncalibrated,
        abstention=tables.get("abstention"),
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    for name, figure in drawn.items():
        run.log_figure(figure, name)
    for name, table in tables.items():
        run.log_table(table, name)


def result_figures(
    model: str,
    validation: pd.DataFrame,
    test: pd.DataFrame,
    classes: Sequence[str],
    *,
    uncalibrated: pd.DataFrame | None = None,
    abstention: pd.DataFrame | None = None,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Figure]:
    """Draw ROC, precision-recall, reliability, confusion; for two classes, log-odds and abstention.

    Args:
        model: its name, for the legend; with more than two classes there is a curve for each class
            against all others instead.
        validation: predictions that the threshold is chosen on, of two classes.
        test: predictions to show.
        classes: names of the labels.
        uncalibrated: the predictions to show as they were before calibration, of two classes.
        abstention: `curves.abstention_table` of the test images, of two classes.
        n_bootstrap: resamples of patients behind bands and intervals.
        seed: of the resamples.

    Returns:
        The figures by name.
    """
    options = Resampling(n_bootstrap=n_bootstrap, seed=seed)
    several = bool(class_names(test))
    curves = one_vs_rest(test) if several else {model: test}
    positive = "the class" if several else classes[1]
    if several:
        decided = class_probabilities(test).argmax(axis=1)
    else:
        decided = decide(validation, test).to_numpy(int)
    drawn = {
        "roc": figures.roc(curves, **options),
        "precision_recall": figures.precision_recall(curves, **options),
        "reliability": figures.reliability(
            curves | _before(uncalibrated), positive=positive, **options
        ),
        "confusion": figures.confusion(test["label"], decided, classes, repeats=n_repeats(test)),
    }
    if not several:
        drawn["log_odds"] = figures.log_odds_histogram(test, classes)
    if abstention is not None:
        drawn["abstention"] = figures.abstention({model: abstention})
    return drawn


def result_tables(
    test: pd.DataFrame,
    *,
    uncalibrated: pd.DataFrame | None = None,
    n_bootstrap: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """The numbers of the reliability and of the abstention figure; arguments as there.

    Returns:
        `reliability`, with the column `answers` (calibrated or before calibration; the name of the
        class, of more than two), and for two classes `abstention`.
    """
    options = Resampling(n_bootstrap=n_bootstrap, seed=seed)
    several = bool(class_names(test))
    shown = one_vs_rest(test) if several else {"calibrated": test} | _before(uncalibrated)
    parts = [
        reliability_table(frame, **options).assign(answers=name) for name, frame in shown.items()
    ]
    tables = {"reliability": pd.concat(parts, ignore_index=True)}
    return tables if several else tables | {"abstention": abstention_table(test, **options)}


def _before(uncalibrated: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    return {} if uncalibrated is None else {"before calibration": uncalibrated}


def decide(validation: pd.DataFrame, test: pd.DataFrame) -> pd.Series:
    """Which test images are called positive, by a threshold from validation (of their fold)."""
    folds = {"": validation} if "fold" not in test else dict(list(validation.groupby("fold")))
    cuts = {
        fold: choose_thresholds(part["label"], part["probability"])["balanced"]
        for fold, part in folds.items()
    }
    fold_of_row = test.get("fold", pd.Series("", index=test.index))
    return test["probability"] >= fold_of_row.map(cuts)
