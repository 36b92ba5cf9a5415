"""Abstention: who is left out first, and what the rest's AUC is worth."""

import numpy as np
import pandas as pd
import pytest

from sgc_experiments.curves import abstention_table
from sgc_experiments.evaluation import evaluate
from tests.simulated_predictions import simulate

FEW = {"n_bootstrap": 200}


def test_at_full_coverage_it_is_the_auc_and_its_interval():
    predictions = simulate(60)
    row = abstention_table(predictions, **FEW).iloc[-1]
    auc = evaluate(predictions, None, **FEW).set_index("metric").loc["auc"]
    assert (row["coverage"], row["n_images"], row["n_patients"]) == (1.0, 240, 60)
    assert row[["auc", "low", "high"]].tolist() == pytest.approx(auc[["value", "low", "high"]])


def test_leaving_out_what_is_uncertain_helps():
    table = abstention_table(simulate(200, correlation=0.0), **FEW)
    assert table["auc"].iloc[0] > table["auc"].iloc[-1] + 0.05
    assert (table["n_images"].diff().dropna() > 0).all()
    assert ((table["low"] <= table["auc"]) & (table["auc"] <= table["high"])).all()
    # Fewer images tell less.
    width = table["high"] - table["low"]
    assert width.iloc[len(table) // 2] > 0


def test_a_large_standard_error_counts_as_uncertain():
    """Wrong answers with large errors leave first, however extreme they are."""
    predictions = simulate(40, images=1)
    wrong = np.arange(len(predictions)) < 8
    side = np.where(predictions["label"] == 1, 1.0, -1.0)
    log_odds = np.where(wrong, -8.0 * side, 2.0 * side)
    noisy = predictions.assign(
        log_odds=log_odds,
        probability=1 / (1 + np.exp(-log_odds)),
        standard_error=np.where(wrong, 100.0, 0.1),
    )
    table = abstention_table(noisy, **FEW).set_index("coverage")
    assert table.loc[0.8, "auc"] == 1.0
    assert table.loc[0.8, "low"] < 1.0
    assert table.loc[1.0, "auc"] < 0.9
    blind = abstention_table(noisy.assign(standard_error=0.0), **FEW).set_index("coverage")
    assert blind.loc[0.2, "auc"] < 0.1


def test_perfect_for_patients_of_both_classes():
    """Two patients with an image of each class are one pair, as in `evaluate`."""
    log_odds = np.array([-3.0, 3.0, -2.5, 2.6])
    table = {"image_id": list("1234"), "patient": list("aabb"), "label": [0, 1, 0, 1]}
    table |= {"log_odds": log_odds, "probability": 1 / (1 + np.exp(-log_odds))}
    predictions = pd.DataFrame(table)
    row = abstention_table(predictions, **FEW).iloc[-1]
    auc = evaluate(predictions, None, **FEW).set_index("metric").loc["auc"]
    assert row[["auc", "low", "high"]].tolist() == pytest.approx([1, 0.025, 1])
    assert auc[["value", "low", "high"]].tolist() == pytest.approx([1, 0.025, 1])


def test_an_error_that_is_not_known_counts_as_none():
    predictions = simulate(30)
    without = abstention_table(predictions.assign(standard_error=0.0), **FEW)
    unknown = abstention_table(predictions.assign(standard_error=np.nan), **FEW)
    assert unknown.equals(without)
