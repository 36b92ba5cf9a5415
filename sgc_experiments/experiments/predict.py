"""Entry point ``predict``: score a folder of images with a registered model.

Images are prepared as in training, each in a limited process. The table appears under its name only
when it is complete; until then every batch is kept beside it, and the same command goes on from
there. File names stay in the table on disk: MLflow gets counts only, since a name can hold what
identifies a patient.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sgc_experiments.command_line import parse
from sgc_experiments.config import PredictConfig
from sgc_experiments.data.boxes import Box
from sgc_experiments.data.decode_pool import run_isolated
from sgc_experiments.data.image_folder import FULL_BOX, find_images, read_boxes
from sgc_experiments.data.prepare import PrepareTask, prepare_file
from sgc_experiments.data.rejection import Reason, RejectedFile
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.fitted import FittedModel, load_fitted
from sgc_experiments.experiments.other_prevalence import log_prevalence, wanted_prevalence
from sgc_experiments.experiments.prediction_journal import PredictionJournal
from sgc_experiments.experiments.scoring import answer, posterior_of, with_prevalence
from sgc_experiments.progress import progress_bar
from sgc_experiments.tracking import TrackedRun, start_run

BATCH = 64

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and predict."""
    predict(parse(PredictConfig, arguments))


def predict(config: PredictConfig) -> None:
    """Score a folder in one MLflow run that holds counts.

    Raises:
        UserError: there is no such model or folder, or the table cannot be written.
    """
    with start_run("predict", {"entry_point": "predict", "model_uri": config.model_uri}) as run:
        run.log_config(config.model_dump())
        run.log_environment()
        model = load_fitted(config.model_uri, config.device)
        run.set_tags({"model": model.name, "fitted_by": model.run_id})
        root = config.images.expanduser().absolute()
        names = find_images(root)
        boxes = _boxes(config, model, names)
        out = config.out.expanduser().absolute()
        identity = [model.run_id, model.settings.as_dict(), config.seed, model.facts["data_digest"]]
        try:
            with PredictionJournal(out, identity) as journal:
                _score(config, model, root, boxes, journal)
                scored, rejected = journal.publish(names, partial(_finish, run, config, model))
        except OSError as error:
            raise UserError(
                f"out={out} cannot be written ({os.strerror(error.errno or 0)}); choose another "
                "place."
            ) from None
        _report(run, config, scored, rejected)


def _boxes(config: PredictConfig, model: FittedModel, names: list[str]) -> dict[str, Box | None]:
    """The lesion box of every image; None where the model takes whole images, or none is known."""
    if model.settings.input == "whole":
        if config.boxes:
            raise UserError("boxes is for models of lesion crops; this one takes whole images.")
        return dict.fromkeys(names)
    if not config.boxes:
        raise UserError(
            "This model judges lesion crops: give boxes=FILE.csv with the columns path, x0, y0, "
            "x1, y1, or boxes=full if every image is a crop already."
        )
    if config.boxes == "full":
        return dict.fromkeys(names, FULL_BOX)
    known = read_boxes(Path(config.boxes).expanduser())
    return {name: known.get(name) for name in names}


def _score(
    config: PredictConfig,
    model: FittedModel,
    root: Path,
    boxes: dict[str, Box | None],
    journal: PredictionJournal,
) -> None:
    """Score what the journal does not hold yet, a batch at a time."""
    todo = [name for name in boxes if not journal.holds(name, root / name, boxes[name])]
    if len(todo) < len(boxes):
        logger.info("going on: %d of %d images are done", len(boxes) - len(todo), len(boxes))
    with progress_bar(total=len(todo), title="predicting", unit="image") as bar:
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            prepared, reasons = _prepare(config, model, root, {n: boxes[n] for n in batch})
            for name, reason in reasons.items():
                journal.add(name, root / name, boxes[name], {"reason": reason})
            if prepared:
                images = np.stack(list(prepared.values()))
                table = answer(model.classifier, images, seed=config.seed)
                for name, row in zip(prepared, table.to_dict("records"), strict=True):
                    journal.add(name, root / name, boxes[name], row)
            bar.update(len(batch))


def _prepare(
    config: PredictConfig, model: FittedModel, root: Path, boxes: dict[str, Box | None]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Prepare a batch: images by name, and reasons by name of those that cannot be used."""
    needs_box = model.settings.input == "roi"
    reasons = {n: str(Reason.NO_LESION) for n, box in boxes.items() if needs_box and box is None}
    names = [name for name in boxes if name not in reasons]
    tasks = [PrepareTask(str(root / name), boxes[name], model.settings) for name in names]
    found: dict[str, np.ndarray] = {}
    for position, result in run_isolated(prepare_file, tasks, workers=config.workers):
        if isinstance(result, RejectedFile):
            reasons[names[position]] = str(result.reason)
        else:
            found[names[position]] = result.pixels
    return {name: found[name] for name in names if name in found}, reasons


def _finish(
    run: TrackedRun, config: PredictConfig, model: FittedModel, scored: pd.DataFrame
) -> pd.DataFrame:
    """The answers for the prevalence that is wanted."""
    if scored.empty or config.prevalence == "training":
        return scored
    classes, prior = model.classifier.classes, model.classifier.prior
    wanted = wanted_prevalence(config.prevalence, posterior_of(scored, classes), prior)
    log_prevalence(run, classes, wanted)
    return with_prevalence(scored, classes, prior, wanted)


def _report(
    run: TrackedRun, config: PredictConfig, scored: pd.DataFrame, rejected: pd.DataFrame
) -> None:
    flags = [name for name in ("abstain", "out_of_distribution") if name in scored]
    counts = {"images": len(scored), "quarantined": len(rejected)}
    counts |= {name: int(scored[name].sum()) for name in flags}
    run.log_metrics(counts)
    reasons = rejected["reason"].value_counts().reset_index(name="images")
    run.log_table(reasons, "quarantine_reasons")
    lines = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()]
    run.describe(f"Predictions of {config.model_uri}: {', '.join(lines)}. For research only.")
    logger.info("%s; written to %s", ", ".join(lines), config.out)
