"""Patients never straddle, classes are everywhere, small subsets are nested, digests are stable."""

import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgc_experiments.data.schema import hashed
from sgc_experiments.data.splits import (
    SUBSETS,
    Split,
    canonical_csv,
    low_data_subset,
    make_folds,
    make_split,
)
from sgc_experiments.errors import UserError

quick = settings(max_examples=10, deadline=None, derandomize=True)


def image_table(benign: int, malignant: int, views: int = 2, tested: int = 0) -> pd.DataFrame:
    """A table with the columns that splitting needs; the last `tested` patients of each class are
    the official test set. One view of a malignant patient is benign."""
    rows = []
    for patient in range(benign + malignant):
        sick = patient >= benign
        rank = patient - benign if sick else patient
        in_test = rank >= (malignant if sick else benign) - tested
        for view in range(views):
            rows.append(
                {
                    "image_id": hashed("img", f"{patient}/{view}", salt="test"),
                    "patient": hashed("pat", str(patient), salt="test"),
                    "label": int(sick and view == 0),
                    "official_split": ("test" if in_test else "train") if tested else "",
                }
            )
    return pd.DataFrame(rows)


def patients_of(split: Split, subset: str) -> set[str]:
    return set(split.manifest.loc[split.manifest["subset"] == subset, "patient"])


def class_counts(split: Split) -> dict[str, list[int]]:
    labels = split.manifest.groupby(["subset", "patient"])["label"].max()
    return {s: [int((labels[s] == c).sum()) for c in (0, 1)] for s in SUBSETS}


@quick
@given(
    benign=st.integers(3, 60),
    malignant=st.integers(3, 30),
    views=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_patients_never_straddle_and_every_subset_has_both_classes(benign, malignant, views, seed):
    table = image_table(benign, malignant, views)
    split = make_split(table, seed=seed)

    assert (split.manifest.groupby("patient")["subset"].nunique() == 1).all()
    assert sorted(split.manifest["image_id"]) == sorted(table["image_id"])
    assert all(min(counts) >= 1 for counts in class_counts(split).values())


@quick
@given(seed=st.integers(0, 2**31 - 1), rows=st.randoms(use_true_random=False))
def test_the_order_of_rows_plays_no_part(seed, rows):
    table = image_table(20, 10)
    order = list(range(len(table)))
    rows.shuffle(order)
    assert make_split(table, seed=seed).digest == make_split(table.iloc[order], seed=seed).digest


def test_fractions_are_of_all_patients_and_of_each_class():
    split = make_split(image_table(60, 40), seed=1, validation_fraction=0.15, test_fraction=0.25)
    assert class_counts(split) == {"train": [36, 24], "validation": [9, 6], "test": [15, 10]}


def test_an_official_test_set_is_kept_and_fractions_are_of_the_rest():
    table = image_table(40, 20, tested=10)
    split = make_split(table, seed=1, validation_fraction=0.2, test_fraction=0.9)
    assert patients_of(split, "test") == set(table.loc[table.official_split == "test", "patient"])
    assert class_counts(split) == {"train": [24, 8], "validation": [6, 2], "test": [10, 10]}


@quick
@given(
    seed=st.integers(0, 2**31 - 1),
    sizes=st.lists(st.integers(4, 74), min_size=2, max_size=6),
)
def test_low_data_subsets_are_nested_exact_and_leave_the_test_set_alone(seed, sizes):
    full = make_split(image_table(70, 30), seed=0)
    subsets = [low_data_subset(full, n_patients=size, seed=seed) for size in sorted(sizes)]
    for size, small in zip(sorted(sizes), subsets, strict=True):
        kept = patients_of(small, "train") | patients_of(small, "validation")
        assert len(kept) == size
        assert patients_of(small, "test") == patients_of(full, "test")
        assert all(min(counts) >= 1 for counts in class_counts(small).values())
    for small, large in itertools.pairwise(subsets):
        for subset in SUBSETS:
            assert patients_of(small, subset) <= patients_of(large, subset)


@pytest.mark.parametrize("prevalence", [0.05, 0.2, 0.5])
def test_low_data_subsets_of_a_prevalence_are_nested_and_have_it_in_training_and_validation(
    prevalence,
):
    full = make_split(image_table(120, 60), seed=0)
    most = low_data_subset(full, n_patients=None, seed=3, prevalence=prevalence)
    previous = set()
    n_most = most.manifest.query("subset != 'test'")["patient"].nunique()
    for size in (40, 60, n_most):
        subset = low_data_subset(full, n_patients=size, seed=3, prevalence=prevalence)
        people = subset.manifest.query("subset != 'test'").groupby("patient")
        people = people.agg(label=("label", "max"), subset=("subset", "first"))
        assert len(people) == size
        assert previous < set(people.index)
        previous = set(people.index)
        for _, part in people.groupby("subset"):
            # Of each class at least one stays, however rare it is.
            assert abs(part["label"].sum() - max(1, prevalence * len(part))) <= 1
    assert subset.digest == most.digest
    with pytest.raises(UserError, match=f"at most {n_most} patients"):
        low_data_subset(full, n_patients=n_most + 1, seed=3, prevalence=prevalence)


def test_low_data_subsets_are_proportional():
    full = make_split(image_table(80, 40), seed=0, validation_fraction=0.25, test_fraction=0.25)
    assert class_counts(full) == {"train": [40, 20], "validation": [20, 10], "test": [20, 10]}
    small = low_data_subset(full, n_patients=36, seed=3)
    assert class_counts(small) == {"train": [16, 8], "validation": [8, 4], "test": [20, 10]}
    assert low_data_subset(full, n_patients=90, seed=3).digest == full.digest


def test_seeds_differ_and_repeat():
    table = image_table(40, 20)
    assert make_split(table, seed=1).digest == make_split(table, seed=1).digest
    assert make_split(table, seed=1).digest != make_split(table, seed=2).digest
    full = make_split(table, seed=1)
    small = [low_data_subset(full, n_patients=10, seed=seed).digest for seed in (1, 1, 2)]
    assert small[0] == small[1] != small[2]


def test_the_digest_is_of_canonical_bytes():
    manifest = pd.DataFrame(
        {"image_id": ["b", "a"], "patient": ["p", "q"], "label": [0, 1], "subset": ["test"] * 2}
    )
    text = "image_id,patient,label,subset\na,q,1,test\nb,p,0,test\n"
    assert canonical_csv(manifest) == text
    assert Split(manifest).digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_known_split_never_changes():
    # A changed digest would orphan every registered result: change it knowingly or not at all.
    digest = make_split(image_table(30, 15), seed=7).digest
    assert digest == ("a7cd55f2c56875d9ea891fe8684b870cbb5a7f2e5582c34c948854763e2e5011")


def test_every_patient_is_tested_in_exactly_one_fold():
    table = image_table(21, 10)
    folds = make_folds(table, folds=5, seed=0, validation_fraction=0.2)
    tested = [patient for fold in folds for patient in patients_of(fold, "test")]
    assert sorted(tested) == sorted(set(table["patient"]))
    for fold in folds:
        assert (fold.manifest.groupby("patient")["subset"].nunique() == 1).all()
        assert all(min(counts) >= 1 for counts in class_counts(fold).values())


def test_indices_find_the_images_in_any_table():
    table = image_table(20, 10)
    split = make_split(table, seed=0)
    shuffled = table.sample(frac=1, random_state=0).reset_index(drop=True)
    rows = split.indices("validation", shuffled)
    assert set(shuffled.loc[rows, "patient"]) == patients_of(split, "validation")
    everything = np.concatenate([split.indices(subset, shuffled) for subset in SUBSETS])
    assert sorted(everything) == list(range(len(table)))


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (lambda: make_split(image_table(10, 2), seed=0), "10 benign \\+ 2 malignant"),
        (lambda: make_split(image_table(10, 0), seed=0), "10 benign \\+ 0 malignant"),
        (lambda: make_split(image_table(5, 3, tested=3), seed=0), "8 patients"),
        (
            lambda: low_data_subset(make_split(image_table(9, 9), seed=0), n_patients=3, seed=0),
            "subset of 3 patients",
        ),
        (
            lambda: low_data_subset(make_split(image_table(9, 9), seed=0), n_patients=19, seed=0),
            "subset of 19 patients",
        ),
        (
            lambda: make_folds(image_table(9, 4), folds=5, seed=0, validation_fraction=0.2),
            "smaller class has 4",
        ),
        (
            lambda: make_split(image_table(9, 9), seed=0).indices("test", image_table(1, 1)),
            "does not belong",
        ),
    ],
)
def test_impossible_requests_are_refused_with_numbers(attempt, told):
    with pytest.raises(UserError, match=told):
        attempt()
