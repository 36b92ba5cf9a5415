"""Entry point ``prepare``: index, check, cache and split a dataset, and report on its quality.

Every other entry point prepares what it needs by itself; this one does it ahead of time, with all
cores, and shows what there is, what was left out, and what each step made of some images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd

from sgc_experiments import figures
from sgc_experiments.command_line import parse
from sgc_experiments.config import PrepareConfig, resolve_defaults
from sgc_experiments.data import ImageDataset, show_stages
from sgc_experiments.data.splits import SUBSETS
from sgc_experiments.experiments.datasets import Data, load_data, log_data
from sgc_experiments.tracking import TrackedRun, start_run
from sgc_experiments.training_settings import choose_device

_PROPERTIES = {
    "subset": "subset",
    "official_split": "official split",
    "view": "view",
    "laterality": "side",
    "density": "density",
    "assessment": "assessment",
}

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and prepare."""
    prepare(parse(PrepareConfig, arguments))


def prepare(config: PrepareConfig) -> None:
    """Prepare a dataset in one MLflow run that holds the quality report.

    Raises:
        UserError: the data is missing, contradictory or too small for the split.
    """
    config = resolve_defaults(config, gpu=choose_device("auto").type == "cuda")
    name = f"prepare-{config.dataset}-{config.input}{config.image_size}"
    tags = {"entry_point": "prepare", "dataset": config.dataset}
    with start_run(name, tags, config=config) as run:
        run.log_config(config.model_dump())
        run.log_environment()
        data = load_data(config)
        log_data(run, data)
        report = count_images(data)
        reasons = count_reasons(data.dataset)
        run.log_table(report, "counts")
        run.log_table(reasons, "quarantine_reasons")
        run.log_figure(figures.counts(report), "counts")
        run.log_metrics(
            {"images": len(data.dataset.table), "quarantined": len(data.dataset.quarantine)}
            | {f"patients_{subset}": data.n_patients(subset) for subset in SUBSETS}
        )
        if config.examples:
            _show_examples(run, config, data)
        text = quality_report(config, data, report, reasons)
        run.describe(text)
        logger.info("%s", text)


def count_images(data: Data) -> pd.DataFrame:
    """Count images by property and class.

    Returns:
        Columns ``property``, ``value``, ``label`` (name of the class) and ``images``; properties
        that no image has are left out.
    """
    table = data.dataset.table.merge(data.split.manifest[["image_id", "subset"]], on="image_id")
    table["label"] = [data.dataset.classes[label] for label in table["label"]]
    parts = []
    for column, name in _PROPERTIES.items():
        if (table[column] == "").all():
            continue
        counted = table.groupby([column, "label"]).size().reset_index(name="images")
        parts.append(counted.rename(columns={column: "value"}).assign(property=name))
    report = pd.concat(parts)[["property", "value", "label", "images"]]
    return report.replace({"value": {"": "unknown"}})


def count_reasons(dataset: ImageDataset) -> pd.DataFrame:
    """Count the images that were left out, by reason, the commonest first."""
    return dataset.quarantine["reason"].value_counts().reset_index(name="images")


def _show_examples(run: TrackedRun, config: PrepareConfig, data: Data) -> None:
    table = data.dataset.table
    chosen = table.groupby("label").head(config.examples).sort_values("label", kind="stable")
    shown = [
        (stages, data.dataset.classes[label])
        for stages, label in zip(show_stages(data.dataset, chosen), chosen["label"], strict=True)
        if stages is not None
    ]
    if shown:
        stages, captions = map(list, zip(*shown, strict=True))
        run.log_figure(figures.preparation_stages(stages, captions), "preparation_stages")


def quality_report(
    config: PrepareConfig, data: Data, report: pd.DataFrame, reasons: pd.DataFrame
) -> str:
    """The report in markdown."""
    sizes = report[report["property"] == "subset"].pivot_table(
        index="value", columns="label", values="images", fill_value=0
    )
    lines = [
        f"**{config.dataset}**, prepared as {config.input} at {config.image_size} px: "
        f"{len(data.dataset.table)} images, {len(data.dataset.quarantine)} left out.",
        "",
        "| subset | patients | " + " | ".join(data.dataset.classes) + " |",
        "|---|---|" + "---|" * len(data.dataset.classes),
    ]
    for subset in SUBSETS:
        images = " | ".join(f"{sizes.loc[subset, name]:.0f}" for name in data.dataset.classes)
        lines.append(f"| {subset} | {data.n_patients(subset)} | {images} |")
    if len(reasons):
        lines += ["", "| left out because | images |", "|---|---|"]
        lines += [f"| {row.reason} | {row.images} |" for row in reasons.itertuples()]
    return "\n".join(lines)
