"""From a configuration to images and a split, and both into the run's record."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sgc_experiments.config import DataConfig
from sgc_experiments.data import ImageDataset, load_dataset
from sgc_experiments.data.splits import Split, low_data_subset, make_split
from sgc_experiments.tracking import TrackedRun
from sgc_experiments.training import ImageSet

SUBSETS = ("train", "validation", "test")


class Data(NamedTuple):
    """A dataset and who is in which subset of it."""

    dataset: ImageDataset
    split: Split

    def rows(self, subset: str) -> np.ndarray:
        """The positions of a subset's images in the dataset."""
        return self.split.indices(subset, self.dataset.table)

    def image_set(self, subset: str) -> ImageSet:
        """The images and labels of a subset, in memory."""
        rows = self.rows(subset)
        labels = self.dataset.table["label"].to_numpy(np.int64)
        return ImageSet(np.asarray(self.dataset.images[rows]), labels[rows])

    def n_patients(self, subset: str) -> int:
        """How many patients a subset has."""
        return self.dataset.table.iloc[self.rows(subset)]["patient"].nunique()

    def prevalence(self, subset: str) -> np.ndarray:
        """The share of each class among a subset's images, (C,)."""
        labels = self.dataset.table.iloc[self.rows(subset)]["label"].to_numpy(np.int64)
        return np.bincount(labels, minlength=len(self.dataset.classes)) / max(len(labels), 1)


def load_data(config: DataConfig) -> Data:
    """Read, prepare and split the dataset that ``config`` names.

    Raises:
        UserError: the data is missing, contradictory or too small for the split.
    """
    reader_options = {
        "inbreast": {"birads3": config.birads3},
        "cbis_ddsm": {"abnormality": config.abnormality, "on_leak": config.on_leak},
    }
    dataset = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        input=config.input,
        image_size=config.image_size,
        clahe=config.clahe,
        workers=config.workers,
        reader_options=reader_options.get(config.dataset, {}),
        phantom={
            "patients": config.phantom_patients,
            "seed": config.phantom_seed,
            "difficulty": config.difficulty,
        },
    )
    split = make_split(
        dataset.table,
        seed=config.split_seed,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
    )
    if config.n_patients != "all":
        split = low_data_subset(split, n_patients=config.n_patients, seed=config.split_seed)
    return Data(dataset, split)


def log_data(run: TrackedRun, data: Data) -> None:
    """Record which images a run saw: the manifest, its digest, and one dataset input a subset."""
    dataset, split = data
    run.set_tags(
        {
            "data_digest": dataset.digest,
            "split_digest": split.digest,
            "n_train_patients": data.n_patients("train"),
            "n_quarantined": len(dataset.quarantine),
        }
    )
    run.log_table(split.manifest, "split")
    run.log_table(dataset.quarantine, "quarantine")
    for subset in SUBSETS:
        members = split.manifest[split.manifest["subset"] == subset]
        run.log_input(
            members[["image_id", "patient", "label"]],
            name=f"{dataset.name}-{subset}",
            digest=split.digest,
            context=subset,
        )
