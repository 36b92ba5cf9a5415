"""What a low-data ablation shows: tables, figures, one page, and the registry.

Everything is computed from the predictions that the cells stored. All models, sizes and seeds share
the resamples of the test patients, so differences between them are paired.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Unpack

import pandas as pd

from sgc_experiments import figures
from sgc_experiments.bootstrap import Resampling
from sgc_experiments.config import FewshotConfig
from sgc_experiments.experiments import ablation_findings
from sgc_experiments.experiments.ablation_grid import Failed, Finished
from sgc_experiments.experiments.comparison_page import html_page
from sgc_experiments.experiments.leakage import check_predictions_match
from sgc_experiments.intervals import interval_text
from sgc_experiments.learning_curves import Cell, LearningCurves, learning_curves
from sgc_experiments.low_data_registry import (
    NATURAL,
    CellVersion,
    alias_of,
    low_data_name,
    publish_cells,
)
from sgc_experiments.metrics import logged_auc
from sgc_experiments.predictions import class_names
from sgc_experiments.tracking import TrackedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The first one is put into words.
_TWO_CLASSES = ("auc", "average_precision")
_MORE_CLASSES = ("macro_auc", "balanced_accuracy")
_NOTES = {
    "curves": "Mean over seeds with its 95 % interval over test patients and, of several, seeds. "
    "size: patients in training and validation together.",
    "differences": "Model less reference at the same size, in pairs: of the same test patients and "
    "seeds. p: two-sided, corrected by Holm over all rows of one metric.",
    "label_efficiency": "How many times the reference's patients a model needs for the reference's "
    "result at that size, by interpolation in log size. at least: it does not get there within the "
    "sizes tried; at most: it is there at the smallest.",
    "smallest_sizes": "Patients at which a model first reaches the target, by interpolation in log "
    "size; inf: not within the sizes tried.",
    "skew": "The same models at one size, by the share of malignant patients among those trained "
    "on; the test patients are the same.",
    "skew_differences": "Model less reference at the same share of malignant patients.",
    "cells": "Every cell of the grid: its run, or why it has no result.",
}

logger = logging.getLogger(__name__)


class Curves(NamedTuple):
    """The learning curves of one prevalence, by metric."""

    prevalence: str
    by_metric: dict[str, LearningCurves]


def publish(
    run: TrackedRun,
    config: FewshotConfig,
    finished: Sequence[Finished],
    failed: Sequence[Failed],
    *,
    split_digest: str,
) -> None:
    """Log tables, figures and the page to the ablation's run, and register the cells.

    Args:
        run: the ablation's.
        config: of the ablation, resolved.
        finished: cells with a result; at least one.
        failed: the others.
        split_digest: of the whole split.
    """
    reference = config.reference or config.models[0]
    options = Resampling(n_bootstrap=config.bootstrap, seed=config.seed)
    tests = {one.cell.key: _test_predictions(one) for one in finished}
    curves = _curves(config, finished, tests, **options)
    tables = _tables(curves, reference, config.targets)
    skew = _skew(config, finished, tests, **options)
    if skew:
        tables |= _skew_tables(*skew, reference)
    tables["cells"] = _cell_table(finished, failed)
    drawn = _figures(curves, skew, tables)
    findings = ablation_findings.sentences(curves, tables, reference, failed)
    for name, table in tables.items():
        run.log_table(table, name)
        run.log_parquet(table, name)
    for name, figure in drawn.items():
        run.log_figure(figure, name)
    about = f"{len(finished)} cells: models × training sizes × seeds on {config.dataset}."
    page = html_page(
        "Low-data ablation",
        about,
        findings,
        {name.replace("_", " "): (_NOTES[name], table) for name, table in tables.items()},
        drawn,
    )
    run.log_page(page, "fewshot_ablation")
    text = "\n".join(
        [f"**{about}** For research, not for diagnosis.", ""] + [f"- {f}" for f in findings]
    )
    run.describe(text)
    logger.info("%s", text)
    if config.register_model:
        _register(run, config, finished, curves, split_digest)


def _test_predictions(one: Finished) -> pd.DataFrame:
    predictions = one.run.table("predictions")
    digest = one.run.tags["split_digest"]
    check_predictions_match(predictions, one.run.table("split"), digest, one.cell.name)
    return predictions[predictions["subset"] == "test"].drop(columns="subset")


def _label(prevalence: float | None) -> str:
    return NATURAL if prevalence is None else f"{prevalence:g}"


def _curves(
    config: FewshotConfig,
    finished: Sequence[Finished],
    tests: dict[str, pd.DataFrame],
    **options: Unpack[Resampling],
) -> list[Curves]:
    found = []
    for prevalence in config.prevalence or (None,):
        cells = [
            Cell(one.cell.model, one.cell.n_patients, one.cell.seed, tests[one.cell.key])
            for one in finished
            if one.cell.prevalence == prevalence
        ]
        if cells:
            by_metric = _by_metric(cells, **options)
            found.append(Curves(_label(prevalence), by_metric))
    return found


def _by_metric(cells: Sequence[Cell], **options: Unpack[Resampling]) -> dict[str, LearningCurves]:
    metrics = _MORE_CLASSES if class_names(cells[0].predictions) else _TWO_CLASSES
    return {metric: learning_curves(cells, metric=metric, **options) for metric in metrics}


def _skew(
    config: FewshotConfig,
    finished: Sequence[Finished],
    tests: dict[str, pd.DataFrame],
    **options: Unpack[Resampling],
) -> tuple[int, dict[str, LearningCurves]] | None:
    """Curves over the prevalence at the largest size that every prevalence has, with that size."""
    if len(config.prevalence) < 2:
        return None
    sizes = [
        {one.cell.n_patients for one in finished if one.cell.prevalence == prevalence}
        for prevalence in config.prevalence
    ]
    common = set.intersection(*sizes)
    if not common:
        return None
    size = max(common)
    cells = [
        Cell(one.cell.model, one.cell.prevalence, one.cell.seed, tests[one.cell.key])
        for one in finished
        if one.cell.n_patients == size and one.cell.prevalence is not None
    ]
    return size, _by_metric(cells, **options)


def _skew_tables(
    size: int, by_metric: dict[str, LearningCurves], reference: str
) -> dict[str, pd.DataFrame]:
    axis = {"size": "prevalence"}
    found = list(by_metric.values())
    tables = {"skew": pd.concat([one.table() for one in found]).rename(columns=axis)}
    tables["skew"] = tables["skew"].assign(size=size)
    if reference in found[0].models:  # else none of its cells has a result
        differences = pd.concat([one.differences(reference) for one in found], ignore_index=True)
        tables["skew_differences"] = differences.rename(columns=axis)
    return tables


def _tables(
    curves: Sequence[Curves], reference: str, targets: Sequence[float]
) -> dict[str, pd.DataFrame]:
    parts: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("curves", "differences", "label_efficiency", "smallest_sizes")
    }
    for prevalence, by_metric in curves:
        for metric, found in by_metric.items():
            own = {
                "curves": found.table(),
                "smallest_sizes": pd.concat([found.smallest_size(t) for t in targets])
                if targets
                else pd.DataFrame(),
            }
            if reference in found.models:
                own["differences"] = found.differences(reference)
                own["label_efficiency"] = found.label_efficiency(reference)
            for name, table in own.items():
                parts[name].append(table.assign(metric=metric, prevalence=prevalence))
    tables = {name: pd.concat(found, ignore_index=True) for name, found in parts.items() if found}
    return {
        name: table[["prevalence", "metric", *table.columns.drop(["prevalence", "metric"])]]
        for name, table in tables.items()
        if len(table)
    }


def _cell_table(finished: Sequence[Finished], failed: Sequence[Failed]) -> pd.DataFrame:
    rows = []
    cells: list[Finished | Failed] = [*finished, *failed]
    for one in cells:
        cell = one.cell
        row: dict[str, object] = {
            "model": cell.model,
            "size": cell.n_patients,
            "fraction": cell.fraction,
            "seed": cell.seed,
            "prevalence": _label(cell.prevalence),
        }
        if isinstance(one, Finished):
            row |= {
                "status": "finished",
                "test_auc": logged_auc(one.run.metrics, "test_auc"),
                "val_auc": logged_auc(one.run.metrics, "val_auc"),
                "training_seconds": one.run.metrics.get("training_seconds"),
                "run_id": one.run.run_id,
                "reason": "",
            }
        else:
            row |= {"status": "failed", "run_id": one.run_id, "reason": one.reason}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.sort_values(["prevalence", "model", "size", "seed"], ignore_index=True)


def _figures(
    curves: Sequence[Curves],
    skew: tuple[int, dict[str, LearningCurves]] | None,
    tables: dict[str, pd.DataFrame],
) -> dict[str, Figure]:
    drawn = {}
    for prevalence, by_metric in curves:
        end = "" if prevalence == NATURAL else f"_prevalence_{prevalence}"
        for metric, found in by_metric.items():
            drawn[f"{metric}_by_size{end}"] = figures.learning_curves(found.table())
        if "differences" in tables:
            rows = tables["differences"]
            rows = rows[rows["prevalence"] == prevalence]
            if len(rows):
                drawn[f"differences{end}"] = figures.forest(rows)
        if "label_efficiency" in tables:
            rows = tables["label_efficiency"]
            first = next(iter(by_metric))
            rows = rows[(rows["prevalence"] == prevalence) & (rows["metric"] == first)]
            if len(rows):
                drawn[f"label_efficiency{end}"] = figures.label_efficiency(rows)
    if skew:
        size, by_metric = skew
        label = f"Share of malignant patients among {size}"
        for metric, found in by_metric.items():
            drawn[f"{metric}_by_prevalence"] = figures.learning_curves(
                found.table(), axis_label=label
            )
    return drawn


def _register(
    run: TrackedRun,
    config: FewshotConfig,
    finished: Sequence[Finished],
    curves: Sequence[Curves],
    split_digest: str,
) -> None:
    points = _points(curves)
    for model in config.models:
        cells = [
            CellVersion(one.run, points[model, one.cell.n_patients, _label(one.cell.prevalence)])
            for one in finished
            if one.cell.model == model
        ]
        if cells:
            name = low_data_name(model, config.dataset)
            text = _description(model, config, curves)
            publish_cells(
                name, cells, ablation=run.run_id, split_digest=split_digest, description=text
            )
            logger.info("registered %s: %d versions", name, len(cells))


def _points(curves: Sequence[Curves]) -> dict[tuple[str, int, str], dict[str, object]]:
    """The registry's tags of every point of the curves, by model, size and prevalence."""
    points: dict[tuple[str, int, str], dict[str, object]] = {}
    for prevalence, by_metric in curves:
        for metric, found in by_metric.items():
            for row in found.table().itertuples():
                point = points.setdefault((row.model, int(row.size), prevalence), {})
                point["curve_seeds"] = row.n_seeds
                point[f"curve_{metric}"] = row.value
                point[f"curve_{metric}_low"] = row.low
                point[f"curve_{metric}_high"] = row.high
    return points


def _description(model: str, config: FewshotConfig, curves: Sequence[Curves]) -> str:
    names = [figures.readable(metric) for metric in curves[0].by_metric]
    lines = [
        f"**{model}** on **{config.dataset}**, trained on ever fewer patients; one version per "
        "cell of the ablation. *For research, not for diagnosis.*",
        "",
        "| patients | malignant | seeds | " + " | ".join(names) + " | best version |",
        "|---" * (4 + len(names)) + "|",
    ]
    for prevalence, by_metric in curves:
        tables = [
            table[table["model"] == model]
            for table in (found.table() for found in by_metric.values())
        ]
        for rows in zip(*(table.to_dict("records") for table in tables), strict=True):
            n, share = (
                f"{rows[0]['size']:g}",
                prevalence if prevalence == NATURAL else f"{float(prevalence):.0%}",
            )
            values = " | ".join(interval_text(pd.Series(row)) for row in rows)
            alias = alias_of(n, prevalence)
            lines.append(f"| {n} | {share} | {rows[0]['n_seeds']} | {values} | `@{alias}` |")
    return "\n".join(
        [
            *lines,
            "",
            "Mean over seeds (95 % interval: over test patients and, of several, seeds). patients: "
            "training and validation together. The best version is that of the highest AUC on "
            "validation.",
        ]
    )
