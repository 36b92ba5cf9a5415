"""The guard against a model that saw a test patient: before it trains, and when it is judged.

Before training, the manifest itself is checked. A comparison trusts no tag: it takes the digest of
the manifest that the run stored, and holds the run's predictions against that manifest. Whom a
model has seen, `seen_by` reads from what the run that fitted it recorded.
"""

from __future__ import annotations

import hashlib
import logging
from typing import NamedTuple

import pandas as pd

from sgc_experiments.data.splits import Split
from sgc_experiments.errors import UserError
from sgc_experiments.past_runs import PastRun
from sgc_experiments.registered_models import run_that_fitted
from sgc_experiments.tracking import TrackedRun

_IDENTITY = ["image_id", "patient", "label"]

logger = logging.getLogger(__name__)


class Seen(NamedTuple):
    """Whom a model has seen.

    Attributes:
        trained_on: patients that it learnt from, with or without their labels.
        validated_on: patients that it was chosen and calibrated on.
        nameless: images that it learnt from whose patients nobody knows.
    """

    trained_on: frozenset[str]
    validated_on: frozenset[str]
    nameless: int

    @property
    def patients(self) -> frozenset[str]:
        """All of them, by pseudonym, which is the same however a dataset is called and split."""
        return self.trained_on | self.validated_on


def seen_by(run: PastRun) -> Seen:
    """Whom the model of a run has seen, itself or through the weights that it started from.

    Raises:
        UserError: that is not known, as a run or a table is missing.
    """
    patients = run.table("split").groupby("subset")["patient"].agg(frozenset)
    seen = Seen(patients["train"], patients["validation"], 0)
    if "unlabelled_digest" in run.tags:
        unlabelled = run.table("unlabelled")["patient"]
        named = frozenset(unlabelled) - {""}
        seen = Seen(seen.trained_on | named, seen.validated_on, int((unlabelled == "").sum()))
    if "init_from" in run.tags:
        before = seen_by(run_that_fitted(run.tags.get("init_run_id", ""), run.tags["init_from"]))
        seen = Seen(
            seen.trained_on | before.trained_on,
            seen.validated_on | before.validated_on,
            seen.nameless + before.nameless,
        )
    return seen


def check_start(seen: Seen, manifest: pd.DataFrame, source: str) -> None:
    """Check that a model may start from the weights of one that has seen somebody.

    Training on the same split again is no leak: its validation patients may stay what they are.

    Args:
        seen: by the model that has the weights.
        manifest: the split, or all folds, of the new one.
        source: what has the weights.

    Raises:
        UserError: the new model would be judged on patients that its weights know; they are
            counted.
    """
    validation, test = (
        frozenset(manifest.loc[manifest["subset"] == subset, "patient"])
        for subset in ("validation", "test")
    )
    if known := seen.trained_on & validation | seen.patients & test:
        raise UserError(
            f"{source} has seen {len(known)} patient(s) that the new model would be validated or "
            "tested on: start from a model of other patients, or of the same split."
        )


def log_nameless(run: TrackedRun, seen: Seen, source: str) -> None:
    """Say, and record, where nobody knows whom a model has seen."""
    if seen.nameless:
        logger.warning(
            "%s has learnt from %d image(s) of a folder: whether their patients are among those "
            "that it is judged on, nobody can check",
            source, seen.nameless,
        )  # fmt: skip
        run.set_tags({"n_seen_images_of_unknown_patients": seen.nameless})


def check_subsets(manifest: pd.DataFrame, source: str = "The split") -> None:
    """Check that no patient is in two subsets of a manifest.

    Raises:
        UserError: some are; they are counted.
    """
    folds = ["fold"] if "fold" in manifest else []
    subsets = manifest.groupby([*folds, "patient"])["subset"].nunique()
    if straddling := int((subsets > 1).sum()):
        raise UserError(
            f"{source} has {straddling} patient(s) in two subsets, so that a model would be tested "
            "on patients that it was trained on; make the split again."
        )


def manifest_digest(manifest: pd.DataFrame) -> str:
    """The digest of a split; with a column ``fold``, of all folds together."""
    if "fold" not in manifest:
        return Split(manifest).digest
    lines = [f"{fold} {Split(part).digest}\n" for fold, part in manifest.groupby("fold")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_predictions_match(
    predictions: pd.DataFrame, manifest: pd.DataFrame, digest: str, source: str
) -> None:
    """Check that a run's predictions are those of the patients that its digest stands for.

    Args:
        predictions: its predictions, with ``subset``.
        manifest: its split, as it stored it.
        digest: its tag ``split_digest``.
        source: what the run is called.

    Raises:
        UserError: the manifest leaks or is another one, or the predictions are of other images.
    """
    check_subsets(manifest, f"The split of {source}")
    if manifest_digest(manifest) != digest:
        raise UserError(
            f"{source} says that it used split {digest[:12]}, but the split that it stored is "
            "another one; fit it again."
        )
    columns = _IDENTITY + (["fold"] if "fold" in manifest else [])
    if set(columns) - set(predictions):
        raise UserError(f"{source} does not say of which fold its predictions are; fit it again.")
    for subset in ("validation", "test"):
        stored, predicted = (
            frame.loc[frame["subset"] == subset, columns].sort_values(columns, ignore_index=True)
            for frame in (manifest, predictions)
        )
        if not stored.equals(predicted):
            raise UserError(
                f"{source} was not evaluated on the {subset} images of its split; fit it again."
            )
