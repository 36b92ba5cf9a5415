"""From a configuration to images and a split, and both into the run's record."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sgc_experiments.config import AUTO, DataConfig, FitConfig, settled
from sgc_experiments.data import ImageDataset, load_dataset
from sgc_experiments.data.splits import SUBSETS, Split, low_data_subset, make_folds, make_split
from sgc_experiments.experiments.leakage import check_subsets
from sgc_experiments.tracking import TrackedRun
from sgc_experiments.training import ImageSet

# Who is in which subset.
SPLIT_PARAMETERS = {
    "n_patients",
    "training_prevalence",
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "subset_seed",
}


_OF_ONE_DATASET = {
    "birads3": "inbreast",
    "abnormality": "cbis_ddsm",
    "on_leak": "cbis_ddsm",
    "phantom_patients": "phantom",
    "phantom_seed": "phantom",
    "difficulty": "phantom",
}

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """A dataset and who is in which subset of it.

    Attributes:
        dataset: the images.
        split: the whole of it, hidden subsets included: who is in none must stay known.
        hidden: subsets whose images are not given out.
    """

    dataset: ImageDataset
    split: Split
    hidden: frozenset[str] = frozenset()

    def rows(self, subset: str) -> np.ndarray:
        """The positions of a subset's images in the dataset.

        Raises:
            ValueError: the subset is hidden.
        """
        if subset in self.hidden:
            raise ValueError(f"{subset} is hidden from what has these data")
        return self.split.indices(subset, self.dataset.table)

    def image_set(self, subset: str) -> ImageSet:
        """The images and labels of a subset, in memory."""
        rows = self.rows(subset)
        labels = self.dataset.table["label"].to_numpy(np.int64)
        return ImageSet(np.asarray(self.dataset.images[rows]), labels[rows])

    def without_test(self) -> Data:
        """The same with test hidden: for what must not see it."""
        return self._replace(hidden=self.hidden | {"test"})

    def n_patients(self, subset: str) -> int:
        """How many patients a subset has."""
        return int(self.dataset.table.iloc[self.rows(subset)]["patient"].nunique())

    def prevalence(self, subset: str) -> np.ndarray:
        """The share of each class among a subset's images, (C,)."""
        labels = self.dataset.table.iloc[self.rows(subset)]["label"].to_numpy(np.int64)
        return np.bincount(labels, minlength=len(self.dataset.classes)) / max(len(labels), 1)


def load_data(config: DataConfig) -> Data:
    """Read, prepare and split the dataset that ``config`` names.

    Raises:
        UserError: the data is missing, contradictory or too small for the split.
    """
    dataset = load_images(config)
    return Data(dataset, split_images(config, dataset))


def load_images(config: DataConfig) -> ImageDataset:
    """Read and prepare the dataset that ``config`` names.

    Raises:
        UserError: the data is missing or contradictory.
    """
    for name, dataset in _OF_ONE_DATASET.items():
        changed = getattr(config, name) != DataConfig.model_fields[name].default
        if changed and config.dataset != dataset:
            logger.warning("%s is of dataset=%s, and without effect here", name, dataset)
    reader_options: dict[str, dict[str, Any]] = {
        "inbreast": {"birads3": config.birads3},
        "cbis_ddsm": {"abnormality": config.abnormality, "on_leak": config.on_leak},
        "table": {"table": config.table, "classes": config.classes},
    }
    return load_dataset(
        config.dataset,
        data_dir=config.table.parent if config.table else config.data_dir,
        cache_dir=config.cache_dir,
        input=settled(config.input),
        image_size=settled(config.image_size),
        clahe=config.clahe,
        workers=config.workers,
        reader_options=reader_options.get(config.dataset, {}),
        phantom={
            "patients": config.phantom_patients,
            "seed": config.phantom_seed,
            "difficulty": config.difficulty,
        },
    )


def load_images_once(config: DataConfig) -> ImageDataset:
    """`load_images`, for a process that fits one model after another on the same images."""
    names = set(DataConfig.model_fields) - SPLIT_PARAMETERS - {"seed"}
    values = {name: getattr(config, name) for name in names}
    # Not validated again: the rest would come from the environment, and might contradict this.
    return _load_once(DataConfig.model_construct(**values))


@functools.lru_cache(maxsize=1)
def _load_once(config: DataConfig) -> ImageDataset:
    return load_images(config)


def split_images(config: DataConfig, dataset: ImageDataset) -> Split:
    """The split that ``config`` describes.

    Raises:
        UserError: there are too few patients for it.
    """
    split = make_split(
        dataset.table,
        seed=config.split_seed,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
    )
    return _as_many_as_wanted(config, split)


def split_folds(config: FitConfig, dataset: ImageDataset) -> dict[str, Split]:
    """The folds of the cross-validation that ``config`` describes, by name ("1" or "1.1", …).

    Raises:
        UserError: there are too few patients for them.
    """
    splits = {}
    for repeat in range(config.repeats):
        folds = make_folds(
            dataset.table,
            folds=config.folds,
            seed=config.split_seed + repeat,
            validation_fraction=config.validation_fraction,
        )
        for number, split in enumerate(folds, start=1):
            name = f"{repeat + 1}.{number}" if config.repeats > 1 else str(number)
            splits[name] = _as_many_as_wanted(config, split)
    return splits


def _as_many_as_wanted(config: DataConfig, split: Split) -> Split:
    n_patients = None if config.n_patients == "all" else config.n_patients
    prevalence = None if config.training_prevalence == AUTO else config.training_prevalence
    if n_patients is None and prevalence is None:
        return split
    return low_data_subset(
        split,
        n_patients=n_patients,
        seed=config.subset_seed,
        prevalence=prevalence,
    )


def log_data(run: TrackedRun, data: Data, subsets: Sequence[str] = SUBSETS) -> None:
    """Record which images a run saw: the manifest, its digest, and one dataset input a subset.

    Args:
        run: where to log.
        data: the dataset and the whole split.
        subsets: that the run sees.

    Raises:
        UserError: a patient is in two subsets.
    """
    dataset, split = data.dataset, data.split
    check_subsets(split.manifest)
    run.set_tags(
        {
            "data_digest": dataset.digest,
            "split_digest": split.digest,
            "n_train_patients": data.n_patients("train"),
            "n_quarantined": len(dataset.quarantine),
            "classes": ",".join(dataset.classes),
        }
    )
    run.log_table(split.manifest, "split")
    run.log_table(dataset.quarantine, "quarantine")
    for subset in subsets:
        members = split.manifest[split.manifest["subset"] == subset]
        run.log_input(
            members[["image_id", "patient", "label"]],
            name=f"{dataset.name}-{subset}",
            digest=split.digest,
            context=subset,
        )
