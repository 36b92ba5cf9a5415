"""A comparison as one HTML page that needs no other file: it can be mailed, and opened anywhere."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sgc_experiments import figures
from sgc_experiments.intervals import interval_text
from sgc_experiments.predictions import LEVELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {
    "auc": "AUC",
    "macro_auc": "macro AUC",
    "average_precision": "average precision",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "calibration error",
}
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:13px}"
    "td,th{padding:.25rem .7rem;white-space:nowrap;border-bottom:1px solid #ddd;text-align:left}"
    "th{background:#f5f5f5}img{max-width:100%;height:auto}figure{margin:1.5rem 0}"
    "div{overflow-x:auto}"
)


def wide_results(results: pd.DataFrame) -> pd.DataFrame:
    """One row per level and model, one column of text per metric of ``METRICS``."""
    shown = results[results["metric"].isin(METRICS)]
    texts = shown.assign(text=[interval_text(row) for _, row in shown.iterrows()])
    wide = texts.pivot(index=["level", "model"], columns="metric", values="text")
    order = [
        (level, model)
        for level in LEVELS
        for model in dict.fromkeys(results["model"])
        if (level, model) in wide.index
    ]
    wide = wide.loc[order, [metric for metric in METRICS if metric in wide]]
    return wide.rename(columns=METRICS).rename_axis(columns=None).reset_index()


def render(
    *,
    about: str,
    results: pd.DataFrame,
    differences: pd.DataFrame,
    costs: pd.DataFrame,
    drawn: Mapping[str, Figure],
) -> str:
    """Write the page.

    Args:
        about: one sentence on whom the models were tested on.
        results: columns of ``evaluation.evaluation_report``, and ``model``.
        differences: columns of ``comparison.paired_differences``, and ``level``.
        costs: one row per model.
        drawn: figures by name.
    """
    tables = {
        "Results on test": (
            "Value with its 95 % interval, by patient-clustered bootstrap. Thresholds were chosen "
            "on validation.",
            wide_results(results),
        ),
        "Paired differences": (
            "Every resample of the patients is applied to both models. p: two-sided, corrected by "
            "Holm over the models of one level and metric; DeLong's where a patient counts once.",
            _differences_table(differences),
        ),
        "Cost": ("As measured on the machine of each run.", costs),
    }
    return html_page("Comparison of models", about, [], tables, drawn)


def html_page(
    title: str,
    about: str,
    findings: Sequence[str],
    tables: Mapping[str, tuple[str, pd.DataFrame]],
    drawn: Mapping[str, Figure],
) -> str:
    """One page that holds text, tables and figures.

    Args:
        title: of the page.
        about: one sentence on whom the models were tested on.
        findings: sentences, listed first.
        tables: a note and a table by heading.
        drawn: figures by name.
    """
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style><h1>{title}</h1>",
        f"<p>{html.escape(about)} For research, not for diagnosis.</p>",
    ]
    if findings:
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings)
        parts.append(f"<h2>What the data show</h2><ul>{items}</ul>")
    for heading, (note, table) in tables.items():
        body = table.to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="")
        parts.append(f"<h2>{html.escape(heading)}</h2><p>{note}</p><div>{body}</div>")
    for name, figure in drawn.items():
        text = html.escape(name.replace("_", " "))
        parts.append(f'<figure><img alt="{text}" src="{_data_uri(figure)}"></figure>')
    return "\n".join(parts)


def _differences_table(differences: pd.DataFrame) -> pd.DataFrame:
    values = differences[["difference", "low", "high"]].rename(columns={"difference": "value"})
    table = differences[["level", "metric", "model", "reference"]].assign(
        difference=[interval_text(row) for _, row in values.iterrows()],
        p=differences["p"],
        p_holm=differences["p_holm"],
        p_delong=differences["p_delong"],
    )
    table["metric"] = table["metric"].map(METRICS)
    names = {"difference": "difference (95 % interval)", "p_holm": "p (Holm)"}
    return table.rename(columns=names | {"p_delong": "p (DeLong)"})


def _data_uri(figure: Figure) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = figures.save_png(figure, Path(folder) / "figure.png")
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
