"""INbreast as it is really distributed, and what contradicts itself."""

import plistlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sgc_experiments.data.inbreast import read_table
from sgc_experiments.data.rejection import Reason
from sgc_experiments.data.schema import get_quarantine, hashed
from sgc_experiments.errors import UserError
from tests.data.inbreast_release import (
    HEADER,
    OUTLINE,
    Image,
    images,
    osirix,
    write_release,
    xls,
)

BOX = (5.0, 40.0, 20.5, 55.25)
MARKER = "MARKER"


def by_number(table: pd.DataFrame, number: int) -> pd.Series:
    wanted = hashed("img", str(number), salt="inbreast")
    return table.set_index("image_id").loc[wanted]


def test_rows_become_an_image_table(tmp_path):
    content = [
        Image(22000001, "aa", side="L", view="CC", grade="1", acr="4"),
        Image(22000002, "aa", side="L", view="MLO", grade="3", acr=" "),
        Image(22000003, "bb", side="R", view="FB", grade="4a"),
        Image(22000004, "bb", side="R", view="MLO", grade="6", date="200909"),
    ]
    table = read_table(write_release(tmp_path, content))
    first, second, third, fourth = (by_number(table, image.number) for image in content)
    assert [row["label"] for row in (first, second, third, fourth)] == [0, 0, 1, 1]
    assert [row["view"] for row in (first, second, third, fourth)] == ["CC", "MLO", "CC", "MLO"]
    assert (first["laterality"], third["laterality"]) == ("L", "R")
    assert (first["density"], second["density"]) == ("4", "")
    assert (third["assessment"], first["official_split"]) == ("4a", "")
    assert first["patient"] == second["patient"] != third["patient"] == fourth["patient"]
    assert first["exam"] == second["exam"]
    assert third["exam"] != fourth["exam"]
    assert Path(first["path"]).name == "22000001_aa_MG_L_CC_ANON.dcm"


def test_footers_float_names_and_trailing_blanks(tmp_path):
    content = images(2)
    rows = [image.cells for image in content]
    rows[0][5] += ".0"
    rows[1][3] = " MLO "
    rows[1] = [*rows[1], ""]
    rows += [[], [""] * 8, ["", "", "", "", "", "Total", "12", ""]]
    content[1] = replace(content[1], view="MLO")
    assert len(read_table(write_release(tmp_path, content, rows=rows))) == 2


def test_the_first_sheet_of_an_xls_is_read_and_nothing_else(tmp_path):
    content = images(3)
    header = ["Mass ", *HEADER, "Findings Notes (in Portuguese)"]
    rows = [["X", *image.cells, MARKER] for image in content]
    for row in rows:
        row[6] = float(row[6])  # the file name is a number
    rows[2][8] = 2.0
    footer = [[""] * 9, ["", "", "", "", "", "", "", "", "total 3"]]
    write_release(tmp_path, content, table=False)
    (tmp_path / "INbreast.xls").write_bytes(xls([[header, *rows, *footer], [["Name"], [MARKER]]]))
    table = read_table(tmp_path)
    assert len(table) == 3
    assert MARKER not in table.to_csv()


@pytest.mark.parametrize("below", ["", "INbreast Release 1.0", "inbreast"])
@pytest.mark.parametrize("flat", [False, True])
def test_the_release_is_found_in_its_usual_places(tmp_path, below, flat):
    write_release(tmp_path / below, images(2), flat=flat)
    (tmp_path / below / ".DS_Store").write_text("")
    table = read_table(tmp_path)
    assert len(table) == 2
    assert table["lesions"].tolist() == [(BOX,), (BOX,)]


def test_birads_3_is_benign_or_left_out_and_counted(tmp_path):
    content = [replace(image, grade=grade) for image, grade in zip(images(3), "235", strict=True)]
    write_release(tmp_path, content)
    assert read_table(tmp_path)["label"].sum() == 1
    table = read_table(tmp_path, birads3="drop")
    assert len(table) == 2
    dropped = hashed("img", str(content[1].number), salt="inbreast")
    assert get_quarantine(table) == {dropped: Reason.EXCLUDED_GRADE}
    with pytest.raises(UserError, match="birads3 must be one of benign, drop"):
        read_table(tmp_path, birads3="malignant")


def test_lesions_are_outlines_clipped_the_largest_first(tmp_path):
    regions = [
        ("Mass", OUTLINE),
        ("Calcification", [(1, 1)]),
        ("Calcification", [(1, 1), (9, 9)]),
        ("Pectoral Muscle", [(0, 0), (60, 0), (0, 90)]),
        ("Cluster", [(-3.5, -2), (30, 4), (10, 70)]),
        ("Line", [(1, 5), (2, 5), (3, 5)]),
    ]
    content = [
        Image(22000001, "aa", regions=regions),
        Image(22000002, "bb", regions=None),
        Image(22000003, "cc", regions=[]),
    ]
    table = read_table(write_release(tmp_path, content))
    assert by_number(table, 22000001)["lesions"] == ((0.0, 0.0, 30.0, 70.0), BOX)
    assert by_number(table, 22000002)["lesions"] == ()
    assert by_number(table, 22000003)["lesions"] == ()


BILLION = b"""<?xml version="1.0"?><!DOCTYPE plist [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><plist version="1.0"><dict><key>Images</key>
<string>&b;</string></dict></plist>"""


@pytest.mark.parametrize(
    "annotation",
    [
        b"",
        b"not XML",
        osirix([("Mass", OUTLINE)])[:-30],
        BILLION,
        plistlib.dumps({"Images": [{"ROIs": [{"Point_px": ["(1, 2"] * 5}]}]}),
        plistlib.dumps({"Images": [{"ROIs": [{"Point_px": ["(1, 9e999)"] * 5}]}]}),
        plistlib.dumps({"Images": [{"ROIs": [{"Point_px": [5] * 5}]}]}),
        plistlib.dumps({"Images": [{"ROIs": "text"}]}),
        plistlib.dumps({"Images": 5}),
        plistlib.dumps([1]),
        plistlib.dumps({"Images": []}, fmt=plistlib.FMT_BINARY),
    ],
)
def test_broken_annotations_cost_their_image_only(tmp_path, annotation):
    content = images(2)
    write_release(tmp_path, content)
    (tmp_path / "AllXML" / f"{content[0].number}.xml").write_bytes(annotation)
    table = read_table(tmp_path)
    assert len(table) == 1
    assert list(get_quarantine(table).values()) == [Reason.BAD_ANNOTATION]


def test_a_missing_release_is_told_in_one_sentence(tmp_path):
    (tmp_path / "AllDICOMs").mkdir()
    with pytest.raises(UserError) as caught:
        read_table(tmp_path)
    message = str(caught.value)
    for told in (str(tmp_path), "INbreast.csv", "AllDICOMs", "Breast Research Group", "phantom"):
        assert told in message
    assert message.count(". ") == 0
    assert "\n" not in message


def test_every_contradiction_is_listed_by_row_number_without_content(tmp_path):
    content = [replace(image, patient=f"{MARKER}{n}") for n, image in enumerate(images(8))]
    rows = [image.cells for image in content]
    rows[0][2] = "R"
    rows[1][3] = MARKER
    rows[2][6] = "9"
    rows[3][7] = "0"
    rows[4][5] = MARKER
    rows[5][5] = "29999999"
    rows[6][5] = rows[7][5]
    write_release(tmp_path, content, rows=rows)
    (tmp_path / "AllDICOMs" / f"{MARKER}.dcm").write_bytes(b"")
    (tmp_path / "AllDICOMs" / "22000010_other_MG_L_CC_ANON.dcm").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        read_table(tmp_path)
    message = str(caught.value)
    for told in (
        "side or view is not the file name's in 2 rows (2, 3)",
        "View is not CC, MLO or FB in 1 row (3)",
        "ACR is not 1 to 4 or blank in 1 row (4)",
        "Bi-Rads is not 1 to 6 or 4a to 4c in 1 row (5)",
        "no valid file name in 1 row (6)",
        "no such image file in 1 row (7)",
        "the file name occurs twice in 2 rows (8, 9)",
        "several image files in 1 row (3)",
        "3 image file(s) without a row",
        "1 image file(s) whose name is not an INbreast name",
    ):
        assert told in message, told
    assert MARKER not in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("INbreast.csv", b""),
        ("INbreast.csv", b"a;b;c\r\n1;2;3\r\n"),
        ("INbreast.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)),
        ("INbreast.xls", b"MARKER"),
    ],
)
def test_a_table_that_is_none_is_told(tmp_path, name, content):
    write_release(tmp_path, images(1), table=False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*copy the release again") as caught:
        read_table(tmp_path)
    assert MARKER not in str(caught.value)


def test_a_release_without_annotations_is_told(tmp_path, caplog):
    write_release(tmp_path, images(2))
    read_table(tmp_path)
    assert not caplog.text
    for file in (tmp_path / "AllXML").iterdir():
        file.unlink()
    (tmp_path / "AllXML").rmdir()
    assert len(read_table(tmp_path)) == 2
    assert "no annotation found (AllXML/*.xml)" in caplog.text
