"""Entry point ``train``: fit one classifier, evaluate it on test and register it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sgc_experiments.command_line import parse
from sgc_experiments.config import FitConfig, TrainConfig, departures, resolve_defaults, settled
from sgc_experiments.data import ImageDataset
from sgc_experiments.experiments.cross_validation import cross_validate
from sgc_experiments.experiments.datasets import Data, load_images, split_images
from sgc_experiments.experiments.fitting import fit_and_publish
from sgc_experiments.experiments.models import check_model
from sgc_experiments.experiments.team import team
from sgc_experiments.registered_models import pinned
from sgc_experiments.tracking import TrackedRun, start_run
from sgc_experiments.training_settings import choose_device

_MOST_CHANGES = 4  # longer names are cut off in the UI's list

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    config = parse(TrainConfig, arguments)
    with team(config.processes, config.device):
        train(config)


def train(config: TrainConfig) -> None:
    """Fit one classifier in one MLflow run.

    Raises:
        UserError: the data or a parameter does not allow it; the run is FAILED with the reason.
    """
    gpu = choose_device(config.device).type == "cuda"
    config = resolve_defaults(config, gpu=gpu)
    with start_run(run_name(config), run_tags(config), config=config) as run:
        announce(config.model, config, gpu=gpu)
        run.log_config(config.model_dump())
        run.log_environment()
        check_model(config.model)
        if config.init_from:
            pinned(config.init_from)
        run_model(run, config, load_images(config))


def run_name(config: TrainConfig) -> str:
    """How the run of a resolved configuration is listed: what it is, and what is not the default.

    No commas, which separate names where ``compare`` takes several.
    """
    images = f"{config.dataset}-{config.input}{config.image_size}"
    folds = f"-{config.folds}folds" if config.folds else ""
    changed = [f"{name}={_short(value)}" for name, value in departures(config).items()]
    more = [f"+{len(changed) - _MOST_CHANGES}"] if len(changed) > _MOST_CHANGES else []
    what = f"{config.model}-{images}{folds}-seed{config.seed}"
    return " ".join([what, *changed[:_MOST_CHANGES], *more])


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return value.name if isinstance(value, Path) else str(value).replace(",", "-")


def run_tags(config: TrainConfig) -> dict[str, str]:
    """By which the run of a resolved configuration is found."""
    return {"entry_point": "train", "model": config.model, "dataset": config.dataset}


def run_model(run: TrackedRun, config: TrainConfig, dataset: ImageDataset) -> None:
    """Fit and evaluate a model on the split, or on the folds, that its configuration names.

    Raises:
        UserError: the data or a parameter does not allow it.
    """
    if config.folds:
        cross_validate(run, config, dataset)
    else:
        fit_and_publish(run, config, Data(dataset, split_images(config, dataset)))


def announce(models: str, config: FitConfig, *, gpu: bool) -> None:
    """Say what is about to be done, in the log."""
    logger.info(
        "%s on %s: input=%s, image_size=%d, budget=%s",
        models, config.dataset, config.input, config.image_size, config.budget,
    )  # fmt: skip
    if config.input == "whole" and not gpu and settled(config.image_size) < 384:
        logger.info(
            "No GPU: image_size=%d, not the paper's 384; -P image_size=384 changes it.",
            config.image_size,
        )
