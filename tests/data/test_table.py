"""The user's own table: what it may leave out, and everything that is wrong told at once."""

import os

import numpy as np
import pytest

from sgc_experiments.data import load_dataset
from sgc_experiments.data.schema import get_classes, hashed
from sgc_experiments.data.splits import make_split
from sgc_experiments.data.table import read_table
from sgc_experiments.errors import UserError
from tests.own_images import CLASSES, encode, picture, write_own_images, write_table


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    return tmp_path


def rows_of(labels=("0", "1", "0", "1"), **columns):
    names = [f"{name}.png" for name in "abcd"]
    rows = [
        {"path": name, "patient": f"P{k}", "label": label}
        for k, (name, label) in enumerate(zip(names, labels, strict=True))
    ]
    for column, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    return rows


def read(folder, rows, **options):
    return read_table(folder, table=write_table(folder / "images.csv", rows), **options)


def test_three_columns_are_enough(folder):
    table = read(folder, rows_of())
    assert get_classes(table) == ("0", "1")
    for column in ("laterality", "view", "density", "assessment", "official_split"):
        assert set(table[column]) == {""}
    assert set(table["patient"]) == {hashed("pat", f"P{k}", salt="table") for k in range(4)}
    assert table.groupby("exam")["patient"].nunique().eq(1).all()
    assert not table["lesions"].map(len).any()


def test_every_column_is_understood_in_the_ways_people_write_it(folder):
    rows = rows_of(
        laterality=["left", "R", "l", ""], view=["cc", "MLO", "", "Cc"],
        density=["A", "4", "", "b"],
        birads=["4a", "", "6", "2"], split=["train", "Validation", "testing", "val"],
        exam=["1", "2", "1", "1"], image_id=["x", "y", "z", "w"],
        x0=["1", "", "", "0"], y0=["2", "", "", "0.5"],
        x1=["3", "", "", "9"], y1=["4", "", "", "9"],
        notes=["MARKER"] * 4,
    )  # fmt: skip
    table = read(folder, rows).set_index("image_id")
    table = table.loc[[hashed("img", "id", name, salt="table") for name in "xyzw"]]
    assert list(table["laterality"]) == ["L", "R", "L", ""]
    assert list(table["view"]) == ["CC", "MLO", "", "CC"]
    assert list(table["density"]) == ["1", "4", "", "2"]
    assert list(table["assessment"]) == ["4a", "", "6", "2"]
    assert list(table["official_split"]) == ["train", "validation", "test", "validation"]
    assert list(table["lesions"]) == [((1, 2, 3, 4),), (), (), ((0, 0.5, 9, 9),)]


@pytest.mark.parametrize(
    ("labels", "classes", "names", "indices"),
    [
        (["10", "9", "10", "9"], (), ("9", "10"), [1, 0, 1, 0]),
        (["1.0", "0.0", "1.0", "0"], (), ("0", "1"), [1, 0, 1, 0]),
        (["b", "a", "c", "a"], (), ("a", "b", "c"), [1, 0, 2, 0]),
        (["cancer", "normal", "normal", "cancer"], ("normal", "cancer"), None, [1, 0, 0, 1]),
        (["1", "0", "0", "1"], ("normal", "cancer"), None, [1, 0, 0, 1]),
    ],
)
def test_labels_are_names_or_numbers_in_an_order_that_can_be_given(
    folder, labels, classes, names, indices
):
    table = read(folder, rows_of(labels), classes=classes)
    assert get_classes(table) == (names or classes)
    by_file = {os.path.basename(row.path): row.label for row in table.itertuples()}
    assert [by_file[f"{name}.png"] for name in "abcd"] == indices


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"path": ["MARKER.png", "b.png", "c.png", "d.png"]}, "path is no file in 1 row (2)"),
        ({"path": ["", "b.png", "c.png", "d.png"]}, "path is no file in 1 row (2)"),
        ({"path": ["a\0.png", "b.png", "c.png", "d.png"]}, "path is no file in 1 row (2)"),
        ({"path": ["../MARKER.png", "b.png", "c.png", "d.png"]}, "out of the table's folder in 1"),
        ({"path": ["/etc/passwd", "b.png", "c.png", "d.png"]}, "out of the table's folder in 1"),
        ({"path": ["link.png", "b.png", "c.png", "d.png"]}, "out of the table's folder in 1"),
        ({"path": ["b.png", "b.png", "c.png", "d.png"]}, "same file as in another row in 2 rows"),
        ({"path": ["./b.png", "b.png", "c.png", "d.png"]}, "same file as in another row in 2 rows"),
        ({"patient": ["", "1", "2", "3"]}, "patient is empty in 1 row (2)"),
        ({"label": ["", "0", "1", "1"]}, "label is empty in 1 row (2)"),
        ({"label": ["1"] * 4}, "label has 1 different values"),
        ({"label": ["1", "0", "1", "x" * 60]}, "longer than 40"),
        ({"image_id": ["1", "1", "", ""]}, "image_id occurs twice in 2 rows (2, 3)"),
        ({"laterality": ["MARKER", "L", "R", ""]}, "laterality is none of L, R, nor empty in 1"),
        ({"view": ["ML", "CC", "", ""]}, "view is none of CC, MLO, nor empty in 1 row (2)"),
        ({"density": ["5", "1", "", ""]}, "density is none of 1, 2, 3, 4, nor empty in 1"),
        ({"birads": ["7", "1", "", ""]}, "birads is not 0 to 6"),
        ({"split": ["MARKER", "test", "train", "train"]}, "split is none of test, train, valid"),
        ({"split": ["", "test", "train", "train"]}, "split is empty, though other rows have one"),
        ({"split": ["test", "train"] * 2, "patient": ["1"] * 4}, "patient is in two splits in 4"),
        ({"x0": ["1"] * 4}, "a box needs x0, y0, x1, y1: no y0, x1, y1"),
        (
            {"x0": ["5", "", "inf", "1"], "y0": ["1"] * 4, "x1": ["2"] * 4, "y1": ["3"] * 4},
            "the box is not 0 ≤ x0 < x1 and 0 ≤ y0 < y1 in 3 rows (2, 3, 4)",
        ),
    ],
)  # fmt: skip
def test_each_rule_is_enforced_by_row_and_nothing_is_quoted(folder, changes, told):
    (folder / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(UserError) as caught:
        read(folder, rows_of(**changes))
    assert told in str(caught.value)
    assert "MARKER" not in str(caught.value)


def test_all_problems_are_told_together(folder):
    with pytest.raises(UserError) as caught:
        read(folder, rows_of(["", "1", "0", "1"], view=["x"] * 4, patient=["", "a", "b", "c"]))
    assert "(problems: 3;" in str(caught.value)


def test_missing_columns_and_an_empty_table_are_told(tmp_path):
    with pytest.raises(
        UserError, match=r"has no column patient and label: its first row must name"
    ):
        read(tmp_path, [{"path": "a.png", "Patients": "1"}])
    with pytest.raises(UserError, match="is not a file; give a CSV table"):
        read_table(tmp_path, table=tmp_path / "none.csv")


def test_a_label_outside_the_given_classes_is_told(folder):
    with pytest.raises(UserError, match="label is none of classes= in 1 row \\(5\\)"):
        read(folder, rows_of(["a", "b", "a", "c"]), classes=("a", "b"))


def test_positions_stand_for_classes_only_where_no_label_is_a_class(folder):
    with pytest.raises(UserError, match=r"label is none of classes= in 2 rows \(2, 4\)"):
        read(folder, rows_of(["0", "1", "0", "1"]), classes=("1", "2"))
    table = read(folder, rows_of(["1", "2", "1", "1"]), classes=("2", "1"))
    assert sorted(table["label"]) == [0, 1, 1, 1]


def test_a_table_in_another_encoding_is_refused_for_its_patients_would_merge(folder):
    rows = rows_of(patient=["J\xfcrgen", "J\xf6rgen", "8", "9"])
    table = write_table(folder / "images.csv", rows)
    assert read_table(folder, table=table)["patient"].nunique() == 4
    table.write_bytes(table.read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(UserError, match=r"^images\.csv is not encoded in UTF-8; save it") as caught:
        read_table(folder, table=table)
    assert "rgen" not in str(caught.value)


def test_empty_rows_are_left_out_and_counted(folder):
    table = folder / "images.csv"
    head, good, bad = "path,patient,label\n", "a.png,1,0\nb.png,2,1\n", "none.png,3,1\n"
    table.write_text(head + "\n\n" + good + ",,\n\n")
    assert len(read_table(folder, table=table)) == 2
    table.write_text(head + "\n" + good + ",,\n\n" + bad + "c.png,4,9x\n,5,1\n")
    with pytest.raises(UserError) as caught:
        read_table(folder, table=table, classes=("0", "1"))
    assert "path is no file in 2 rows (7, 9)" in str(caught.value)
    assert "label is none of classes= in 1 row (8)" in str(caught.value)


@pytest.mark.parametrize("row", ["a.png,1,0,", "a.png,Smith, John,0"])
def test_rows_that_are_longer_than_the_header_are_told(folder, row):
    (folder / "images.csv").write_text(f"path,patient,label\n{row}\n")
    with pytest.raises(UserError, match=r"^images\.csv has rows with more fields than its header;"):
        read_table(folder, table=folder / "images.csv")


def test_four_formats_are_prepared_alike_and_hostile_files_are_quarantined(tmp_path):
    table = write_own_images(tmp_path / "own", patients=4)
    bad = {"bad.npy": b"\x93NUMPY\x01\x00", "bad.png": b"", "bad.tif": b"II*\x00", "bad.dcm": b"x"}
    with table.open("a") as file:
        for name, content in bad.items():
            (table.parent / name).write_bytes(content)
            file.write(f"{name},hostile,{CLASSES[0]},1,1,9,9\n")
    dataset = load_dataset(
        "table", data_dir=table.parent, cache_dir=tmp_path / "cache", input="whole", image_size=32,
        workers=2, progress=False, reader_options={"table": table, "classes": CLASSES},
    )  # fmt: skip
    assert dataset.classes == CLASSES
    assert (len(dataset.table), len(dataset.quarantine)) == (12, 4)
    images = {row.path[-3:]: dataset.images[k] for k, row in dataset.table.iterrows()}
    assert set(images) == {"npy", "png", "tif", "dcm"}
    seed = next(
        int(row.path[-7:-4]) for row in dataset.table.itertuples() if row.path.endswith("npy")
    )
    again = tmp_path / "again"
    rows = []
    for suffix in (".dcm", ".png", ".npy"):
        again.mkdir(exist_ok=True)
        (again / f"0{suffix}").write_bytes(encode(picture(CLASSES[seed % 3], seed), suffix))
        rows.append({"path": f"0{suffix}", "patient": suffix, "label": CLASSES[len(rows)]})
    same = load_dataset(
        "table", data_dir=again, cache_dir=tmp_path / "cache", input="whole", image_size=32,
        workers=1, progress=False,
        reader_options={"table": write_table(again / "t.csv", rows), "classes": CLASSES},
    )  # fmt: skip
    spread = np.ptp(same.images.astype(int), axis=0)
    assert spread.max() <= 1


def test_a_given_split_is_the_split(folder):
    for k in range(4, 12):
        (folder / f"{k}.png").write_bytes(b"")
    rows = rows_of() + [
        {"path": f"{k}.png", "patient": f"P{k}", "label": k % 2} for k in range(4, 12)
    ]
    for number, row in enumerate(rows):
        row["split"] = ("train", "validation", "test")[number // 4]
    table = read(folder, rows)
    manifest = make_split(table, seed=1).manifest.set_index("image_id")["subset"]
    expected = table.set_index("image_id")["official_split"]
    assert manifest.to_dict() == expected.to_dict()


def test_semicolons_and_columns_written_almost_right_are_told(tmp_path, caplog):
    (tmp_path / "mine.csv").write_text("path;patient;label\na.png;MARKER;1\n")
    with pytest.raises(
        UserError, match=r"^mine\.csv is separated by semicolons; save it with commas"
    ):
        read_table(tmp_path, table=tmp_path / "mine.csv")
    caplog.set_level("INFO", logger="sgc_experiments.data")
    rows = [{"path": "a.png", "patient": "1", "label": "0", "Splits": "test", "MARKER": "x"}]
    with pytest.raises(UserError):
        read(tmp_path, rows)
    assert "2 column(s) are not used" in caplog.text
    assert "written almost like split; if it is meant" in caplog.text
    assert "MARKER" not in caplog.text
