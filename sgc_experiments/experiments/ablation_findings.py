"""What the tables of a low-data ablation say, in sentences: for every model alike, whoever wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sgc_experiments.figures import readable
from sgc_experiments.figures.style import signed
from sgc_experiments.low_data_registry import NATURAL

_SIGNIFICANT = 0.05


def sentences(
    curves: Sequence[Any],
    tables: Mapping[str, pd.DataFrame],
    reference: str,
    failed: Sequence[Any],
) -> list[str]:
    """State the results of the first metric, and which cells are missing.

    Args:
        curves: of each prevalence, with ``prevalence`` and ``by_metric``.
        tables: `curves`, and where there is more than one model `differences` and
            `label_efficiency`.
        reference: the model that the others are compared with.
        failed: cells without a result.
    """
    found = []
    for one in curves:
        natural = one.prevalence == NATURAL
        where = "" if natural else f"With {float(one.prevalence):.0%} malignant patients: "
        metric = next(iter(one.by_metric))
        rows = {
            name: table[(table["metric"] == metric) & (table["prevalence"] == one.prevalence)]
            for name, table in tables.items()
            if {"metric", "prevalence"} <= set(table) and name in _OF_A_CURVE
        }
        metric_name = readable(metric)
        texts = [_leader(rows["curves"], metric_name)]
        for model, part in rows.get("differences", pd.DataFrame(columns=["model"])).groupby(
            "model", sort=False
        ):
            texts.append(_against(str(model), reference, part, metric_name))
        for model, part in rows.get("label_efficiency", pd.DataFrame(columns=["model"])).groupby(
            "model", sort=False
        ):
            texts.append(_efficiency(str(model), reference, part, metric_name))
        found += [where + text for text in texts]
    if failed:
        found.append(
            f"{len(failed)} cell(s) of the grid have no result and are missing from the means; the "
            "table of cells says why. retry_failed=true fits them again."
        )
    return found


_OF_A_CURVE = ("curves", "differences", "label_efficiency")


def _leader(curves: pd.DataFrame, metric: str) -> str:
    best = curves.loc[curves.groupby("size")["value"].idxmax()]
    texts = [
        f"{row.model} at {row.size:g} patients ({row.value:.3f}, {row.low:.3f} to {row.high:.3f})"
        for row in best.itertuples()
    ]
    return f"Highest mean {metric}: {'; '.join(texts)}."


def _against(model: str, reference: str, differences: pd.DataFrame, metric: str) -> str:
    clear = differences["p_holm"] < _SIGNIFICANT
    better = differences[clear & (differences["difference"] > 0)]
    worse = differences[clear & (differences["difference"] < 0)]
    rest = differences[~clear]
    texts = [
        f"{verb} {reference} at {_sizes(part, metric)}"
        for verb, part in (("beats", better), ("loses to", worse))
        if len(part)
    ]
    if len(rest):
        texts.append(f"cannot be told from {reference} at {_sizes(rest, metric)}")
    return f"{model} {', '.join(texts)}."


def _sizes(differences: pd.DataFrame, metric: str) -> str:
    return " and ".join(
        f"{row.size:g} patients ({metric} {signed(row.difference, 3)}, {signed(row.low, 3)} to "
        f"{signed(row.high, 3)}, p = {row.p_holm:.3f})"
        for row in differences.itertuples()
    )


def _efficiency(model: str, reference: str, rows: pd.DataFrame, metric: str) -> str:
    texts = []
    for row in rows.itertuples():
        bound = f"{row.bound} " if row.bound else ""
        texts.append(
            f"{bound}{row.factor:.2g} times for what {reference} has with {row.size:g} "
            f"({metric} {row.target:.3f}; {row.low:.2g} to {_limit(row.high)})"
        )
    return f"Patients that {model} needs, as a multiple: {'; '.join(texts)}."


def _limit(value: float) -> str:
    return "no upper limit" if value == float("inf") else f"{value:.2g}"
