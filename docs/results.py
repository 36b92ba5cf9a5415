"""Write the README's tables of results from finished `baseline` and `fewshot_ablation` runs.

``python docs/results.py`` takes the newest ones in the store of ``MLFLOW_TRACKING_URI``,
``python docs/results.py RUN_ID …`` those named.
"""

from __future__ import annotations

import argparse
import io
import os
import re
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run

from sgc_experiments.config import BaselineConfig, FewshotConfig, FitConfig, resolve_defaults

README = Path(__file__).resolve().parents[1] / "README.md"
_METRICS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
}


def newest_run(entry_point: str) -> Run | None:
    """The newest finished run of an entry point."""
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.entry_point = '{entry_point}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    return runs[0] if runs else None


def comparison(run: Run) -> str:
    """The command of a comparison, and its table by image."""
    results, costs = _table(run, "comparison"), _table(run, "costs")
    shown = results[(results["level"] == "image") & results["metric"].isin(_METRICS)]
    seconds = costs.set_index("model")["training_seconds"]
    lines = [
        *_command(run, BaselineConfig()),
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


def low_data(run: Run) -> str:
    """The command of a low-data ablation, and the mean AUC by model and number of patients."""
    curves = _table(run, "curves")
    curves = curves[curves["metric"] == "auc"]
    sizes = sorted(curves["size"].unique())
    lines = [
        *_command(run, FewshotConfig()),
        f"| AUC with … patients | {' | '.join(f'{size:g}' for size in sizes)} |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for model, rows in curves.groupby("model", sort=False):
        by_size = rows.set_index("size")
        lines.append(f"| {model} | {' | '.join(_interval(by_size.loc[n]) for n in sizes)} |")
    lines += [
        "",
        f"Means over {curves['n_seeds'].max():.0f} seeds on the same test patients of the phantom; "
        "95 % intervals over seeds and patients.",
    ]
    return "\n".join(lines) + "\n"


def _table(run: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(
        io.StringIO(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{name}.csv"))
    )


def _command(run: Run, config: FitConfig) -> list[str]:
    """The command of a run: its entry point, and the parameters that differ from the defaults."""
    usual = resolve_defaults(config, gpu=False).model_dump()
    given = [
        f"-P {known}={value}"
        for name, value in run.data.params.items()
        # `mlflow run` logs what it was given as well, without the prefix.
        if name.startswith("config.")
        and (known := name.removeprefix("config.")) in usual
        and _text(usual[known]) != value
    ]
    command = f"mlflow run . -e {config.entry_point} --env-manager local"
    return ["```console", " ".join([command, *given]), "```", ""]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


_SECTIONS = {"baseline": comparison, "fewshot_ablation": low_data}


def main() -> None:
    """Rewrite the sections of the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_id", nargs="*", help="of the runs (default: the newest)")
    arguments = parser.parse_args()
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    if arguments.run_id:
        runs = [mlflow.get_run(run_id) for run_id in arguments.run_id]
    else:
        runs = [run for entry_point in _SECTIONS if (run := newest_run(entry_point))]
    if not runs:
        raise SystemExit("There is no finished run with results in this store: make one first.")
    text = README.read_text(encoding="utf-8")
    for run in runs:
        entry_point = run.data.tags["entry_point"]
        section = _SECTIONS[entry_point](run)
        between = re.compile(rf"(<!-- {entry_point} -->\n).*?(<!-- /{entry_point} -->)", re.DOTALL)
        text = between.sub(lambda m, section=section: m[1] + section + m[2], text)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
