"""What the study's run holds in the end: figures, the table of trials, the best, the gain."""

from __future__ import annotations

import logging

import pandas as pd
from optuna.trial import FrozenTrial

from sgc_experiments import figures
from sgc_experiments.config import TrainConfig, TuneConfig
from sgc_experiments.config.search_space import Range, as_label
from sgc_experiments.experiments.tune_refit import DEFAULTS, TUNED
from sgc_experiments.experiments.tune_study import TuningStudy
from sgc_experiments.tracking import TrackedRun

logger = logging.getLogger(__name__)


def log_study(
    run: TrackedRun, config: TuneConfig, study: TuningStudy, best: FrozenTrial, of_best: TrainConfig
) -> None:
    """Log the trials, figures of the search, and the best parameters as ``best_config.yaml``."""
    trials = study.table()
    run.log_table(trials, "trials")
    run.log_parameters(of_best.model_dump(), "best_config")
    run.log_metrics(
        {
            "trials_complete": (trials["state"] == "complete").sum(),
            "trials_pruned": (trials["state"] == "pruned").sum(),
            "trials_lost": (trials["state"] == "fail").sum(),
            "best_trial": best.number,
        }
    )
    log = [name for name, d in config.space().items() if isinstance(d, Range) and d.log]
    metrics = {"auc": ["val_auc"], "bits_per_dim": ["val_bits_per_dim"]}.get(
        config.objective, ["val_auc", "val_bits_per_dim"]
    )
    for target, metric in enumerate(metrics):
        end = f"_{metric}" if len(metrics) > 1 else ""
        run.log_figure(figures.tuning_history(trials, metric=metric), f"history{end}")
        run.log_figure(figures.tuning_slices(trials, metric=metric, log=log), f"slice{end}")
        run.log_figure(figures.tuning_parallel(trials, metric=metric, log=log), f"parallel{end}")
        importances = study.importances(target)
        if importances:
            run.log_figure(figures.tuning_importance(importances), f"importance{end}")
            table = pd.DataFrame(importances.items(), columns=["parameter", "importance"])
            run.log_table(table, f"importance{end}")
    run.log_figure(figures.tuning_pareto(trials), "pareto")


def log_gain(
    run: TrackedRun, best: FrozenTrial, results: pd.DataFrame, differences: pd.DataFrame
) -> None:
    """Log what the best configuration reaches on test, and its gain over the defaults.

    Args:
        run: the study's.
        best: the best trial.
        results: see ``tune_refit.gain``.
        differences: see ``tune_refit.gain``.
    """
    run.log_table(results, "refits")
    metrics: dict[str, float] = {}
    for row in results.itertuples():
        name = f"{row.model}_test_{row.metric}"
        metrics |= {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high}
    if len(differences):
        run.log_table(differences, "gain")
        run.log_figure(figures.forest(differences.drop(columns="size")), "gain")
        for row in differences.itertuples():
            name = f"gain_test_{row.metric}"
            metrics |= {name: row.difference, f"{name}_low": row.low, f"{name}_high": row.high}
    run.log_metrics(metrics)
    summary = _summary(best, results, differences)
    run.describe(summary)
    logger.info("%s", summary)


def _summary(best: FrozenTrial, results: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The description of the run, in markdown."""
    auc = results[results["metric"] == results["metric"].iloc[0]].set_index("model")
    lines = [
        f"**Best: trial {best.number}, validation AUC {best.user_attrs['val_auc']:.3f}.** For "
        "research, not for diagnosis. Its parameters are in best_config.yaml, for "
        "`train -P config=best_config.yaml`.",
        "",
        "| refitted | seeds | test AUC (95 % interval) |",
        "|---|---|---|",
    ]
    lines += [
        f"| {role} | {auc.loc[role, 'n_seeds']} | {auc.loc[role, 'value']:.3f} "
        f"({auc.loc[role, 'low']:.3f} to {auc.loc[role, 'high']:.3f}) |"
        for role in (TUNED, DEFAULTS)
        if role in auc.index
    ]
    if len(differences):
        row = differences.iloc[0]
        lines += [
            "",
            f"Gain in test AUC over the defaults: {row.difference:+.3f} "
            f"({row.low:+.3f} to {row.high:+.3f}), paired over seeds and test patients.",
        ]
    else:
        lines += ["", "No trial was better than the defaults: there is no gain."]
    lines += ["", "| parameter | best |", "|---|---|"]
    lines += [f"| {name} | {as_label(value)} |" for name, value in best.params.items()]
    return "\n".join(lines)
