"""Models beside each other on the same test patients: tables, figures and a page that holds both.

Everything comes from the predictions that the runs stored, checked against the splits that they
stored; no model is loaded. Intervals and differences rest on resamples of the patients, the same
ones for every model; p values are corrected by Holm over the models of one level and metric.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Unpack

import pandas as pd

from sgc_experiments import figures
from sgc_experiments.bootstrap import Resampling
from sgc_experiments.comparison import check_same_split, paired_differences
from sgc_experiments.config import GENERATIVE_MODEL
from sgc_experiments.data import CLASSES
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import evaluation_report
from sgc_experiments.experiments import comparison_page
from sgc_experiments.experiments.comparison_page import METRICS, wide_results
from sgc_experiments.experiments.leakage import check_predictions_match
from sgc_experiments.past_runs import PastRun
from sgc_experiments.predictions import aggregate, class_names, one_vs_rest
from sgc_experiments.tracking import TrackedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A difference in calibration says little of a breast or an exam, whose scores are aggregates.
_PAIRED = {"image": ("auc", "average_precision", "brier"), "breast": ("auc",), "exam": ("auc",)}
_PAIRED_OF_SEVERAL = {"image": ("macro_auc", "balanced_accuracy", "brier")}
_RANKING = ("auc", "macro_auc")
_COSTS = (
    "training_seconds",
    "training_steps",
    "training_images",
    "inference_seconds_per_image",
    "network_evaluations_per_image",
)
_SUMMARISED = (
    "auc", "macro_auc", "average_precision", "sensitivity_at_90_specificity",
)  # fmt: skip

logger = logging.getLogger(__name__)


class Contender(NamedTuple):
    """One model in the comparison.

    Attributes:
        name: as the tables and figures show it.
        run: that fitted it.
        validation: its validation predictions.
        test: its test predictions.
    """

    name: str
    run: PastRun
    validation: pd.DataFrame
    test: pd.DataFrame


def contenders(runs: Sequence[PastRun]) -> list[Contender]:
    """Read the predictions of runs and check whom they were trained and tested on.

    Raises:
        UserError: fewer than two runs, runs of different splits, or a run whose predictions are not
            those of its split.
    """
    if len(runs) < 2:
        raise UserError(
            f"A comparison needs at least two finished runs of one split; there are {len(runs)}."
        )
    names = _names(runs)
    digests = {name: run.tags["split_digest"] for name, run in zip(names, runs, strict=True)}
    check_same_split(digests)
    return [_read(name, run) for name, run in zip(names, runs, strict=True)]


def _names(runs: Sequence[PastRun]) -> list[str]:
    """The model's name where it is alone, else with what tells its runs apart."""
    names = [f"{run.tags.get('refit', '')} {run.tags['model']}".strip() for run in runs]
    # The name of a run ends in the parameters by which it departs from the defaults.
    changes = [run.name.partition(" ")[2] for run in runs]
    for further in (
        [f" (seed {run.params.get('seed', '?')})" for run in runs],
        [f" {changed}" if changed else "" for changed in changes],
        [f" [{run.run_id[:8]}]" for run in runs],
    ):
        names = [
            name if names.count(name) == 1 else name + more
            for name, more in zip(names, further, strict=True)
        ]
    return names


def _read(name: str, run: PastRun) -> Contender:
    predictions = run.table("predictions")
    check_predictions_match(predictions, run.table("split"), run.tags["split_digest"], name)
    subsets = {
        subset: part.drop(columns="subset").reset_index(drop=True)
        for subset, part in predictions.groupby("subset")
    }
    return Contender(name, run, subsets["validation"], subsets["test"])


def compare(
    run: TrackedRun,
    models: Sequence[Contender],
    *,
    reference: str = "",
    n_bootstrap: int,
    seed: int,
) -> None:
    """Compare models, and log tables, figures and one self-contained page.

    Args:
        run: where to log.
        models: at least two, of one split.
        reference: name of the model that the others are compared with; "" is the generative
            classifier, or else the first.
        n_bootstrap: resamples of patients behind each interval.
        seed: of the resamples.

    Raises:
        UserError: there is no such reference.
    """
    generative = [m.name for m in models if m.run.tags["model"] == GENERATIVE_MODEL]
    reference = reference or [*generative, models[0].name][0]
    options = {"n_bootstrap": n_bootstrap, "seed": seed}
    differences = _differences(models, reference, **options)
    results = _results(models, **options)
    costs = pd.DataFrame(
        [
            {"model": m.name, "run_id": m.run.run_id, **{c: m.run.metrics.get(c) for c in _COSTS}}
            for m in models
        ]
    )
    drawn = _figures(models, results, differences, costs, **options)
    run.log_table(results, "comparison")
    run.log_table(differences, "differences")
    run.log_table(costs, "costs")
    for name, figure in drawn.items():
        run.log_figure(figure, f"comparison_{name}")
    test, digest = models[0].test, models[0].run.tags["split_digest"]
    page = comparison_page.render(
        about=f"{test['patient'].nunique()} test patients, {test['image_id'].nunique()} images, "
        f"split {digest[:12]}.",
        results=results,
        differences=differences,
        costs=costs,
        drawn=drawn,
    )
    run.log_page(page, "comparison")
    summary = _summary(results, differences, reference)
    run.describe(summary)
    logger.info("%s", summary)


def _differences(
    models: Sequence[Contender], reference: str, **options: Unpack[Resampling]
) -> pd.DataFrame:
    sided = all((model.test["laterality"] != "").all() for model in models)
    paired = _PAIRED_OF_SEVERAL if class_names(models[0].test) else _PAIRED
    parts = []
    for level, metrics in paired.items():
        if level == "breast" and not sided:
            continue
        scored = {model.name: aggregate(model.test, level) for model in models}
        table = paired_differences(scored, reference, metrics=metrics, **options)
        parts.append(table.assign(level=level))
    table = pd.concat(parts, ignore_index=True)
    return table[["level", *table.columns.drop("level")]]


def _results(models: Sequence[Contender], **options: Unpack[Resampling]) -> pd.DataFrame:
    parts = []
    for model in models:
        report = evaluation_report(model.validation, model.test, **options)
        whole = report[report["group"] == "all"].drop(columns="group")
        parts.append(whole.assign(model=model.name))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]


def _figures(
    models: Sequence[Contender],
    results: pd.DataFrame,
    differences: pd.DataFrame,
    costs: pd.DataFrame,
    **options: Unpack[Resampling],
) -> dict[str, Figure]:
    drawn = {"differences": figures.forest(differences[differences["level"] == "image"])}
    for class_name, tests in _by_class(models).items():
        ending = f"_{class_name}" if class_name else ""
        drawn[f"roc{ending}"] = figures.roc(tests, **options)
        drawn[f"reliability{ending}"] = figures.reliability(
            tests, positive=class_name or _positive_class(models[0].run), **options
        )
    auc = results[(results["level"] == "image") & results["metric"].isin(_RANKING)]
    for cost, label in (
        ("training_seconds", "Training time (s)"),
        ("inference_seconds_per_image", "Time per image in use (s)"),
    ):
        table = auc.merge(costs.assign(cost=costs[cost]), on="model")
        # What costs nothing, as the majority class does, has no place on a logarithmic axis.
        table = table[table["cost"] > 0]
        if len(table):
            metric = table["metric"].iloc[0]
            drawn[f"auc_against_{cost}"] = figures.cost(table, axis_label=label, metric=metric)
    return drawn


def _by_class(models: Sequence[Contender]) -> dict[str, dict[str, pd.DataFrame]]:
    """Two-class predictions by model; of more classes, those of each class against all others."""
    tests = {model.name: model.test for model in models}
    names = class_names(models[0].test)
    if not names:
        return {"": tests}
    apart = {model: one_vs_rest(test) for model, test in tests.items()}
    return {name: {model: apart[model][name] for model in tests} for name in names}


def _positive_class(run: PastRun) -> str:
    """The second of two classes."""
    return run.tags.get("classes", ",".join(CLASSES)).split(",")[1]


def _summary(results: pd.DataFrame, differences: pd.DataFrame, reference: str) -> str:
    """The description of the run, in markdown."""
    names = [METRICS[m] for m in _SUMMARISED if m in set(results["metric"])]
    lines = [
        "Models compared on the same test patients, for research, not for diagnosis. All tables "
        "and figures are on one page in `comparison.html`. Intervals: 95 %.",
        "",
    ]
    lines += ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    wide = wide_results(results[results["level"] == "image"])
    lines += [
        f"| {row['model']} | " + " | ".join(row[name] for name in names) + " |"
        for _, row in wide.iterrows()
    ]
    ranking = differences["metric"].isin(_RANKING)
    auc = differences[(differences["level"] == "image") & ranking]
    lines += [
        "",
        f"{METRICS[auc['metric'].iloc[0]]} less that of {reference}, by patient-clustered "
        "bootstrap:",
        "",
    ]
    lines += [
        f"- {row.model}: {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}), "
        f"p = {row.p_holm:.3f} after Holm"
        for row in auc.itertuples()
    ]
    return "\n".join(lines)
