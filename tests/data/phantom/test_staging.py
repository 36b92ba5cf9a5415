"""What the writers of synthetic releases share."""

import os

import pytest

from sgc_experiments.data.phantom.staging import in_parallel, is_test_rank, ranks, staged
from sgc_experiments.errors import UserError


def test_a_folder_appears_when_the_block_ends_well(tmp_path):
    with staged(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "content"
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_a_folder_vanishes_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "out"):
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_may_be_filled_and_a_full_one_not(tmp_path):
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out") as folder:
        (folder / "file").touch()
    with pytest.raises(UserError, match="exists already"), staged(tmp_path / "out"):
        pass


def test_what_a_killed_process_left_is_removed_and_what_another_works_on_is_not(tmp_path):
    abandoned = tmp_path / ".out-killed"
    abandoned.mkdir()
    with staged(tmp_path / "out") as at_work:
        assert not abandoned.exists()
        (at_work / "file").touch()
        with staged(tmp_path / "out"):
            assert (at_work / "file").exists()


def test_results_keep_their_order_over_processes():
    assert in_parallel(abs, range(-40, 0), workers=2) == list(range(40, 0, -1))


def test_ranks_count_within_each_class():
    of_class = {True: [], False: []}
    for malignant, rank in ranks(30, seed=3):
        of_class[malignant].append(rank)
    assert of_class == {True: list(range(12)), False: list(range(18))}


def test_one_patient_in_four_of_each_class_is_a_test_patient():
    assert [rank for rank in range(12) if is_test_rank(rank)] == [3, 7, 11]


def test_a_release_without_patients_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        ranks(0, seed=0)
