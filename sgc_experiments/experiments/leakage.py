"""The guard against a model that saw a test patient: before a run trains, and when it is compared.

Before training, the manifest itself is checked. A comparison trusts no tag: it takes the digest of
the manifest that the run stored, and holds the run's predictions against that manifest.
"""

from __future__ import annotations

import hashlib

import pandas as pd

from sgc_experiments.data.splits import Split
from sgc_experiments.errors import UserError

_IDENTITY = ["image_id", "patient", "label"]


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
