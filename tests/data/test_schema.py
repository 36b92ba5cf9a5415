"""The door: what is wrong is all told at once, and nothing of the content is quoted."""

import pandas as pd
import pytest

from sgc_experiments.data.schema import (
    COLUMNS,
    check_table,
    get_quarantine,
    hashed,
    set_quarantine,
)
from sgc_experiments.errors import UserError

MARKER = "MARKER"


def good_row(number: int = 0, **changes) -> dict:
    row = {
        "image_id": hashed("img", str(number), salt="test"),
        "patient": hashed("pat", str(number), salt="test"),
        "exam": hashed("exam", str(number), salt="test"),
        "laterality": "L",
        "view": "CC",
        "label": 1,
        "assessment": "4a",
        "density": "",
        "official_split": "",
        "path": f"/data/{number}.dcm",
        "lesions": ((1.0, 2.0, 3.0, 4.0),),
    }
    return row | changes


def test_pseudonyms_are_stable_and_tell_kinds_datasets_and_parts_apart():
    assert hashed("img", "22670301", salt="inbreast") == "img-3120b729fead"
    others = {
        hashed("pat", "22670301", salt="inbreast")[4:],
        hashed("img", "22670301", salt="cbis_ddsm")[4:],
        hashed("img", "2267", "0301", salt="inbreast")[4:],
        hashed("img", "22670301", salt="inbreast")[4:],
    }
    assert len(others) == 4


def test_a_good_table_comes_out_sorted_typed_and_with_its_quarantine():
    rows = [good_row(n, lesions=()) for n in range(5)]
    table = pd.DataFrame(rows)[list(reversed(COLUMNS))]
    noted = set_quarantine(table, {"img-000000000000": "blank"})
    checked = check_table(noted, "the test release")
    assert tuple(checked.columns) == COLUMNS
    assert checked["label"].dtype == "int64"
    assert list(checked["image_id"]) == sorted(row["image_id"] for row in rows)
    assert get_quarantine(checked) == {"img-000000000000": "blank"}
    assert get_quarantine(table) == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_id": MARKER}, "image_id must be a salted hash (1 row(s): 2)"),
        ({"patient": MARKER}, "patient must be a salted hash (1 row(s): 2)"),
        ({"laterality": MARKER}, "laterality must be L, R or empty (1 row(s): 2)"),
        ({"view": "FB"}, "view must be CC, MLO or empty (1 row(s): 2)"),
        ({"label": 2}, "label must be 0 (benign) or 1 (malignant) (1 row(s): 2)"),
        ({"label": float("nan")}, "label must be 0"),
        ({"assessment": None}, "assessment must be"),
        ({"density": "5"}, "density must be 1 to 4 or empty"),
        ({"official_split": MARKER}, "official_split must be"),
        ({"path": f"{MARKER}/a.dcm"}, "path must be an absolute path"),
        ({"path": "/data/0.dcm"}, "no file may serve two images (2 row(s): 1, 2)"),
        ({"image_id": good_row()["image_id"]}, "image_id must be unique (2 row(s): 1, 2)"),
        ({"exam": good_row()["exam"]}, "an exam must belong to one patient (2 row(s): 1, 2)"),
        ({"lesions": [(1.0, 2.0, 3.0, 4.0)]}, "lesions must be"),
        ({"lesions": ((1.0, 2.0, 1.0, 4.0),)}, "lesions must be"),
        ({"lesions": ((-1.0, 2.0, 3.0, 4.0),)}, "lesions must be"),
        ({"lesions": ((1.0, 2.0, float("inf"), 4.0),)}, "lesions must be"),
    ],
)
def test_each_rule_is_enforced_without_quoting(changes, told):
    table = pd.DataFrame([good_row(0), good_row(1, **changes)])
    with pytest.raises(UserError) as caught:
        check_table(table, "the test release")
    assert told in str(caught.value)
    assert MARKER not in str(caught.value)


def test_a_patient_in_both_official_splits_is_refused():
    rows = [good_row(0, official_split="train"), good_row(1, official_split="test")]
    rows[1]["patient"] = rows[0]["patient"]
    with pytest.raises(UserError, match="no patient may be in two official splits"):
        check_table(pd.DataFrame(rows), "the test release")


def test_all_violations_are_listed_together_and_long_lists_are_cut():
    rows = [good_row(n, view="FB", density="9" if n == 7 else "") for n in range(30)]
    with pytest.raises(UserError) as caught:
        check_table(pd.DataFrame(rows), "the test release")
    message = str(caught.value)
    assert "breaks 2 rule(s)" in message
    assert "30 row(s): 1, 2, 3" in message
    assert "20, …" in message
    assert "21" not in message
    assert "(1 row(s): 8)" in message


def test_missing_and_unknown_columns_are_told_by_name_and_number():
    table = pd.DataFrame([good_row()]).drop(columns=["view", "path"]).assign(MARKER=1)
    with pytest.raises(UserError, match="missing view, path, 1 unknown") as caught:
        check_table(table, "the test release")
    assert MARKER not in str(caught.value)
