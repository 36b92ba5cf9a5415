"""Who is trained on, who validates, who is tested: decided by patient, recorded with a digest.

All images of a patient share a subset, since two views of one breast are nearly one image. Subsets
are stratified by patient label (the highest of any image: malignant if one is). Everything follows
from the patients' pseudonyms and a seed: the order of rows, the file system and the platform play
no part.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sgc_experiments.data import CLASSES
from sgc_experiments.data.schema import get_classes
from sgc_experiments.errors import UserError

SUBSETS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """An assignment of images to subsets.

    Attributes:
        manifest: columns image_id, patient, label, subset; sorted by image_id.
        classes: names of the labels, for messages.
    """

    manifest: pd.DataFrame
    classes: tuple[str, ...] = CLASSES

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's canonical CSV, in hexadecimal."""
        return hashlib.sha256(canonical_csv(self.manifest).encode()).hexdigest()

    def indices(self, subset: str, table: pd.DataFrame) -> np.ndarray:
        """Return the rows of an image table that belong to a subset, in the manifest's order.

        Raises:
            UserError: the table lacks an image of the subset.
        """
        if subset not in SUBSETS:
            raise ValueError(f"subset must be one of {', '.join(SUBSETS)}")
        wanted = self.manifest.loc[self.manifest["subset"] == subset, "image_id"]
        rows: np.ndarray = pd.Index(table["image_id"]).get_indexer(wanted)
        if (rows < 0).any():
            raise UserError(
                f"The split does not belong to this dataset: {int((rows < 0).sum())} of its"
                f" {len(rows)} {subset} images are not there; use the dataset and the reader"
                " options that the split was made with."
            )
        return rows


def canonical_csv(manifest: pd.DataFrame) -> str:
    """Return the bytes that a split's digest is taken of, as text: comma, LF, a header."""
    columns = ["image_id", "patient", "label", "subset"]
    text: str = manifest.sort_values("image_id")[columns].to_csv(index=False, lineterminator="\n")
    return text


def make_split(
    table: pd.DataFrame,
    *,
    seed: int,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.25,
) -> Split:
    """Split an image table by patient.

    Args:
        table: a checked image table.
        seed: decides who goes where.
        validation_fraction: share of the patients (of those outside the official test set, where
            there is one) kept for validation; not used with official validation patients.
        test_fraction: share of the patients tested; not used with an official test set.

    Raises:
        UserError: too few patients of a class for at least one in every subset.
    """
    patients, classes = _patient_labels(table), get_classes(table)
    subsets = pd.Series("train", index=patients.index)
    official = set()
    for subset in ("test", "validation"):
        members = table.loc[table["official_split"] == subset, "patient"]
        if len(members):
            official.add(subset)
            subsets[patients.index.isin(members)] = subset
    available = patients[subsets == "train"]
    for subset, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if subset not in official:
            _move(subsets, patients, subset, _sizes(available, fraction), seed)
    _require_every_class(subsets, patients, classes)
    return _split(table, subsets)


def make_folds(
    table: pd.DataFrame, *, folds: int, seed: int, validation_fraction: float
) -> list[Split]:
    """Split an image table for cross-validation; every patient is tested exactly once.

    An official test set plays no part here: its patients are shuffled with the others.

    Args:
        table: a checked image table.
        folds: number of folds, at least 2.
        seed: decides who goes where.
        validation_fraction: share of all patients that validates in every fold.

    Raises:
        UserError: fewer patients of a class than folds, or than subsets.
    """
    patients, classes = _patient_labels(table), get_classes(table)
    fewest = int(patients.value_counts().reindex(range(len(classes)), fill_value=0).min())
    if folds < 2 or fewest < folds:
        raise UserError(
            f"{folds} folds need at least 2 folds and {folds} patients of each class, but the"
            f" smaller class has {fewest}; ask for fewer folds."
        )
    from sklearn.model_selection import StratifiedKFold  # as in `_move`

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    splits = []
    for _, tested in splitter.split(patients.index, patients):
        subsets = pd.Series("train", index=patients.index)
        subsets.iloc[tested] = "test"
        _move(subsets, patients, "validation", _sizes(patients, validation_fraction), seed)
        _require_every_class(subsets, patients, classes)
        splits.append(_split(table, subsets))
    return splits


def low_data_subset(
    split: Split, *, n_patients: int | None, seed: int, prevalence: float | None = None
) -> Split:
    """Keep a given number of training and validation patients; the test set stays as it is.

    Subsets of one seed are nested: the 25 patients are among the 50. Training and validation
    shrink in the same proportion and have the same class mix, with at least one patient of each
    class in both, because a validation set of full size would be labelled data that a study of
    scarce data claims not to have.

    Patients are queued by the divisor method of Sainte-Laguë over the groups (training or
    validation, of each class), whose allocation is as proportional as whole patients allow
    and never takes a seat away when the number grows.

    Args:
        split: the full split.
        n_patients: how many patients training and validation have together; None: as many as the
            prevalence allows.
        seed: decides who stays.
        prevalence: the share of malignant patients among those who stay, between 0 and 1; None:
            as it is.

    Raises:
        UserError: more patients than there are (of a class), too few for every class in both
            subsets, or a prevalence of more than two classes.
    """
    people = split.manifest.groupby("patient").agg(
        label=("label", "max"), subset=("subset", "first")
    )
    people = people[people["subset"] != "test"].sort_index()
    groups = dict(list(people.groupby(["subset", "label"])))
    fewest = 2 * len(split.classes)
    wanted = len(people) if n_patients is None else n_patients
    if len(groups) < fewest or not fewest <= wanted <= len(people):
        raise UserError(
            f"A low-data subset of {wanted} patients is not possible: it needs at least"
            f" {_one_of_each(split.classes)} for training and for validation, and there are"
            f" {_counts(people['subset'], people['label'], split.classes)}."
        )
    if prevalence is not None and len(split.classes) > 2:
        raise UserError(
            f"A prevalence is a share of one of two classes, but there are {len(split.classes)};"
            " leave it out."
        )
    queue = []
    exhausted = math.inf
    for number, ((subset, label), group) in enumerate(groups.items()):
        weight = float(len(group))
        if prevalence is not None:
            share = prevalence if label else 1 - prevalence
            weight = share * (people["subset"] == subset).sum()
        shuffled = np.random.default_rng([seed, number]).permutation(group.index.to_numpy(object))
        for rank, patient in enumerate(shuffled):
            turn = (2 * rank + 1) / weight if rank else 0.0  # one of each group comes first
            queue.append((turn, number, patient))
        if prevalence is not None:
            exhausted = min(exhausted, (2 * len(group) + 1) / weight)
    queue.sort()
    most = sum(turn < exhausted for turn, _, _ in queue)
    if n_patients is not None and n_patients > most:
        raise UserError(
            f"A low-data subset of {n_patients} patients of whom {prevalence:g} are malignant is"
            f" not possible: it has at most {most} patients, as there are"
            f" {_counts(people['subset'], people['label'], split.classes)}; ask for fewer, or for"
            " all."
        )
    kept = {patient for _, _, patient in queue[: n_patients or most]}
    manifest = split.manifest
    stays = (manifest["subset"] == "test") | manifest["patient"].isin(kept)
    return Split(manifest[stays].reset_index(drop=True), split.classes)


def _patient_labels(table: pd.DataFrame) -> pd.Series:
    """Return the label of every patient, sorted by pseudonym: the highest of its images."""
    return table.groupby("patient")["label"].max().sort_index()


def _sizes(patients: pd.Series, fraction: float) -> dict[int, int]:
    """Return how many patients of each class a share amounts to: the nearest number, at least 1."""
    return {
        label: max(1, math.floor(fraction * int((patients == label).sum()) + 0.5))
        for label in sorted(set(patients))
    }


def _move(
    subsets: pd.Series, patients: pd.Series, subset: str, sizes: dict[int, int], seed: int
) -> None:
    """Move patients of each class from training into another subset, in place.

    A class that has no patient to spare is left alone; `_require_every_class` then says so.
    """
    # A second to import, which what is wrong with the data should not wait for.
    from sklearn.model_selection import train_test_split

    for label, size in sizes.items():
        free = patients.index[(subsets == "train") & (patients == label)].to_numpy(object)
        if len(free) > size:
            _, moved = train_test_split(free, test_size=size, random_state=seed)
            subsets[moved] = subset


def _require_every_class(subsets: pd.Series, patients: pd.Series, classes: tuple[str, ...]) -> None:
    counts = pd.crosstab(subsets, patients).reindex(
        index=list(SUBSETS), columns=range(len(classes)), fill_value=0
    )
    if (counts == 0).any(axis=None):
        raise UserError(
            "There are too few patients for this split: training, validation and test need at"
            f" least {_one_of_each(classes)} each, but the"
            f" {len(patients)} patients ({_class_counts(patients, classes)}) would give"
            f" {_counts(subsets, patients, classes)}; use more patients or other fractions."
        )


def _one_of_each(classes: tuple[str, ...]) -> str:
    return " and ".join(f"one {name}" for name in classes) + " patient"


def _counts(subsets: pd.Series, labels: pd.Series, classes: tuple[str, ...]) -> str:
    return ", ".join(
        f"{subset} {_class_counts(labels[subsets == subset], classes)}"
        for subset in SUBSETS
        if subset in set(subsets)
    )


def _class_counts(labels: pd.Series, classes: tuple[str, ...]) -> str:
    return " + ".join(
        f"{int((labels == label).sum())} {name}" for label, name in enumerate(classes)
    )


def _split(table: pd.DataFrame, subsets: pd.Series) -> Split:
    manifest = table[["image_id", "patient", "label"]].copy()
    manifest["subset"] = manifest["patient"].map(subsets)
    return Split(manifest.sort_values("image_id").reset_index(drop=True), get_classes(table))
