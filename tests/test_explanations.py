"""Which test images are explained."""

from __future__ import annotations

import pandas as pd

from sgc_experiments.experiments.explanations import choose_cases


def _test_images(outcomes):
    table = pd.DataFrame(outcomes, columns=["label", "log_odds"])
    return table.assign(standard_error=0.1), table["log_odds"] > 0


def test_each_outcome_gives_its_typical_and_its_most_certain_image():
    table, called = _test_images(
        [(1, 3.0), (1, 1.0), (1, 2.0), (0, 0.5), (0, 4.0), (0, 0.6), (0, -1.0), (1, -9.0), (1, -2)]
    )
    cases = choose_cases(table, called)
    found = {(c.outcome, c.remark): c.position for c in cases.itertuples()}
    assert found == {
        ("true positive", "typical"): 2,
        ("true positive", "most certain"): 0,
        ("false positive", "typical"): 5,
        ("false positive", "most certain"): 4,
        ("true negative", "typical"): 6,
        ("false negative", "typical"): 8,
        ("false negative", "most certain"): 7,
    }
    assert list(cases["remark"]) == ["typical"] * 4 + ["most certain"] * 3
    assert cases["log_odds"].tolist() == table["log_odds"][cases["position"]].tolist()


def test_the_decision_counts_and_not_the_sign():
    table, _ = _test_images([(1, -1.0), (0, -2.0)])
    assert choose_cases(table, pd.Series([True, True]))["outcome"].tolist() == [
        "true positive",
        "false positive",
    ]
