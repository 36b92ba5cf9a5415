"""Write the README's table of results from a finished `baseline` run.

``python docs/results.py`` takes the newest one in the store of ``MLFLOW_TRACKING_URI``,
``python docs/results.py RUN_ID`` the one named.
"""

from __future__ import annotations

import argparse
import io
import os
import re
from pathlib import Path

import mlflow
import pandas as pd

from sgc_experiments.config import BaselineConfig, resolve_defaults

README = Path(__file__).resolve().parents[1] / "README.md"
_BETWEEN = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_METRICS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
}


def newest_comparison() -> str:
    """The id of the newest finished baseline run."""
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.entry_point = 'baseline' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    if not runs:
        raise SystemExit("There is no finished baseline run in this store: fit one first.")
    return runs[0].info.run_id


def section(run_id: str) -> str:
    """The command of a comparison, and its table by image."""
    run = mlflow.get_run(run_id)
    results, costs = (
        pd.read_csv(io.StringIO(mlflow.artifacts.load_text(f"runs:/{run_id}/{name}.csv")))
        for name in ("comparison", "costs")
    )
    shown = results[(results["level"] == "image") & results["metric"].isin(_METRICS)]
    seconds = costs.set_index("model")["training_seconds"]
    lines = [
        "```console",
        " ".join(["mlflow run . -e baseline --env-manager local", *_given(run.data.params)]),
        "```",
        "",
        f"| test | {' | '.join(_METRICS.values())} | training (s) |",
        "|---" * (len(_METRICS) + 2) + "|",
    ]
    majority = shown.drop_duplicates("metric").set_index("metric")["majority_class"]
    for model, rows in shown.groupby("model", sort=False):
        cells = [_interval(rows.set_index("metric").loc[metric]) for metric in _METRICS]
        lines.append(f"| {model} | {' | '.join(cells)} | {seconds[model]:.0f} |")
    cells = [f"{majority[metric]:.3f}" for metric in _METRICS]
    lines.append(f"| *always the commonest class* | {' | '.join(cells)} | |")
    size = shown.iloc[0]
    lines += [
        "",
        f"{size['n_patients']:.0f} test patients, {size['n_images']:.0f} images of the phantom; "
        "95 % intervals by patient-clustered bootstrap.",
    ]
    return "\n".join(lines) + "\n"


def _given(params: dict[str, str]) -> list[str]:
    """The parameters of a run that differ from the default ones, as arguments."""
    usual = resolve_defaults(BaselineConfig(), gpu=False).model_dump()
    return [
        f"-P {known}={value}"
        for name, value in params.items()
        # `mlflow run` logs what it was given as well, without the prefix.
        if name.startswith("config.")
        and (known := name.removeprefix("config.")) in usual
        and _text(usual[known]) != value
    ]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def main() -> None:
    """Rewrite the section of the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_id", nargs="?", help="of a baseline run (default: the newest)")
    arguments = parser.parse_args()
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    text = section(arguments.run_id or newest_comparison())
    before = README.read_text(encoding="utf-8")
    README.write_text(_BETWEEN.sub(lambda m: m[1] + text + m[2], before), encoding="utf-8")


if __name__ == "__main__":
    main()
