"""Images without labels, from which the generative classifier learns its null class.

``unlabelled=rest`` takes the patients that ``n_patients`` left out; their labels are not looked at.
``unlabelled=DIR`` takes a folder of image files, whose patients nobody knows: an image that is also
in validation or test, byte for byte after preparation, is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sgc_experiments.batches import ImageSet
from sgc_experiments.config import TrainConfig
from sgc_experiments.data.image_folder import load_folder
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.datasets import Data
from sgc_experiments.tracking import TrackedRun

REST = "rest"


class Unlabelled(NamedTuple):
    """Images without labels.

    Attributes:
        images: (N, S, S) uint16.
        manifest: image_id and patient ("" in a folder), N rows.
        digest: SHA-256 over what they are.
    """

    images: np.ndarray
    manifest: pd.DataFrame
    digest: str


def find_unlabelled(config: TrainConfig, data: Data) -> Unlabelled | None:
    """The images that ``config.unlabelled`` names; None if it names none.

    Raises:
        UserError: there are none, or some are in validation or test.
    """
    if config.unlabelled is None:
        return None
    if config.unlabelled == REST:
        return _rest(data)
    found = _folder(Path(config.unlabelled), config, data)
    _check_not_judged(found, data)
    return found


def _rest(data: Data) -> Unlabelled:
    table = data.dataset.table
    rows = np.flatnonzero(~table["patient"].isin(data.split.manifest["patient"]))
    if not len(rows):
        raise UserError(
            "unlabelled=rest finds no patient outside the split: give n_patients, the number of "
            "patients whose labels are used."
        )
    manifest = table.iloc[rows][["image_id", "patient"]].reset_index(drop=True)
    text = manifest.to_csv(index=False, lineterminator="\n") + data.dataset.digest
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Unlabelled(np.asarray(data.dataset.images[rows]), manifest, digest)


def _folder(folder: Path, config: TrainConfig, data: Data) -> Unlabelled:
    found = load_folder(
        folder.expanduser().absolute(),
        PreprocessSettings(**data.dataset.preprocessing),
        cache_dir=config.cache_dir,
        workers=config.workers,
    )
    manifest = pd.DataFrame({"image_id": found.image_ids, "patient": ""})
    return Unlabelled(np.asarray(found.images), manifest, found.digest)


def _check_not_judged(found: Unlabelled, data: Data) -> None:
    seen = {_fingerprint(image) for image in found.images}
    for subset in ("validation", "test"):
        # Also where test is hidden: nothing of it but this comparison comes of it.
        judged = data.dataset.images[data.split.indices(subset, data.dataset.table)]
        if twice := sum(_fingerprint(image) in seen for image in judged):
            raise UserError(
                f"{twice} {subset} image(s) are among the unlabelled ones, which a model would "
                "then be judged on: take them out of the folder, or use unlabelled=rest."
            )


def _fingerprint(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()


def join(labelled: ImageSet, unlabelled: Unlabelled) -> ImageSet:
    """Labelled and unlabelled images (label −1) as one training set."""
    return ImageSet(
        np.concatenate([labelled.images, unlabelled.images]),
        np.concatenate([labelled.labels, np.full(len(unlabelled.images), -1)]),
    )


def log_unlabelled(run: TrackedRun, unlabelled: Unlabelled) -> None:
    """Record which images without labels a run learnt from."""
    run.set_tags(
        {
            "unlabelled_digest": unlabelled.digest,
            "n_unlabelled_images": len(unlabelled.images),
            "n_unlabelled_patients": unlabelled.manifest["patient"].replace("", np.nan).nunique(),
        }
    )
    run.log_table(unlabelled.manifest, "unlabelled")
