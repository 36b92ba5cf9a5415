"""Doubt is a z-test on the evidence; abstaining joins it with what is foreign."""

import numpy as np
import pytest

from sgc_experiments.calibration import Calibration
from sgc_experiments.protocol import Prediction
from sgc_experiments.uncertainty import abstains, in_doubt

EVIDENCE = np.array([[0.0, 0.9], [0.0, -0.9], [0.0, 1.1], [0.0, -30.0]])
ERROR = np.array([[0.0, 1.0]] * 4)


def test_evidence_within_its_error_is_in_doubt():
    plain = Calibration.identity(2)
    assert in_doubt(EVIDENCE, ERROR, plain, 1.0).tolist() == [True, True, False, False]
    assert in_doubt(EVIDENCE, ERROR, plain, 0.5).tolist() == [False] * 4
    assert in_doubt(EVIDENCE, ERROR, plain, 2.0).tolist() == [True, True, True, False]


def test_temperature_scales_both_and_the_offset_moves_the_boundary():
    assert in_doubt(EVIDENCE, ERROR, Calibration(9.0, (0.0, 0.0)), 1.0).tolist() == [
        True, True, False, False,
    ]  # fmt: skip
    moved = Calibration(1.0, (0.0, 30.0))
    assert in_doubt(EVIDENCE, ERROR, moved, 1.0).tolist() == [False, False, False, True]


def test_of_many_classes_the_first_two_count():
    log_odds = np.array([[0.0, 5.0, 4.0], [0.0, 5.0, -4.0]])
    error = np.array([[0.0, 1.0, 1.0]] * 2)
    assert in_doubt(log_odds, error, Calibration.identity(3), 1.0).tolist() == [True, False]


@pytest.mark.parametrize("error", [0.0, np.nan])
def test_no_error_no_doubt(error):
    assert not in_doubt(EVIDENCE, np.full((4, 2), error), Calibration.identity(2), 1.0).any()


def test_what_is_foreign_or_in_doubt_is_abstained_from():
    foreign = np.array([False, False, False, True])
    calibration = Calibration.identity(2)
    said = abstains(Prediction(EVIDENCE, ERROR, 16.0, foreign), calibration)
    assert said.tolist() == [True, True, False, True]
    assert abstains(Prediction(EVIDENCE, ERROR, 16.0), calibration).tolist() == [
        True, True, False, False,
    ]  # fmt: skip
