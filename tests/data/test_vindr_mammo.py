"""The VinDr-Mammo reader, on hand-made tables: one small trap each.

The reader opens no image, so the files are empty here; `phantom/test_vindr_mammo_layout.py` reads
whole releases.
"""

import csv
import hashlib
import os
import re
from pathlib import Path

import pytest

from sgc_experiments.data.schema import hashed
from sgc_experiments.data.vindr_mammo import BREAST, FINDINGS, METADATA, read_table
from sgc_experiments.errors import UserError

SIZE = {"height": 3518, "width": 2800}
COLUMNS = {
    BREAST: "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,"
    "breast_density,split",
    FINDINGS: "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,"
    "breast_density,finding_categories,finding_birads,xmin,ymin,xmax,ymax,split",
    METADATA: "SOP Instance UID,Series Instance UID,SOP Instance UID,Rows,Columns,Image Laterality,"
    "View Position,Window Center,Window Width",
}


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


class Release:
    """A release that grows image by image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = {BREAST: [], FINDINGS: [], METADATA: []}

    def add(
        self, name="image", study="study", *, grade=2, side="L", view="CC", on_disk=True, **row
    ):
        """Add an image of a study; returns its row of the breast-level table."""
        ids = {"study_id": md5(study), "series_id": md5("series"), "image_id": md5(name)}
        row = {
            **ids,
            "laterality": side,
            "view_position": view,
            **SIZE,
            "breast_birads": f"BI-RADS {grade}",
            "breast_density": "DENSITY C",
            "split": "training",
        } | row
        self.rows[BREAST].append(row)
        self.rows[METADATA].append(
            {
                "SOP Instance UID": row["image_id"],
                "Rows": SIZE["height"],
                "Columns": SIZE["width"],
                "Image Laterality": side,
                "View Position": view,
                "Window Center": "[2048, 1500]",
                "Window Width": "[4096, 3000]",
            }
        )
        if on_disk:
            folder = self.root / "images" / row["study_id"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row['image_id']}.dicom").touch()
        return row

    def find(self, box, name="image", *, grade="", categories="['Mass']", **row):
        """Add a finding to an image, with BI-RADS `grade` ("" leaves it out)."""
        birads = f"BI-RADS {grade}" if grade else ""
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False))
        finding = {"image_id": md5(name), "finding_categories": categories}
        self.rows[FINDINGS].append(finding | {"finding_birads": birads} | corners | row)

    def tables(self):
        """Write the three tables; returns the root."""
        if not self.rows[FINDINGS]:
            image = self.rows[BREAST][0]["image_id"]
            self.find((), categories="['No Finding']", image_id=image)
        for name, rows in self.rows.items():
            columns = COLUMNS[name].split(",")
            with (self.root / name).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([row.get(column, "") for column in columns] for row in rows)
        return self.root


@pytest.fixture
def release(tmp_path):
    release = Release(tmp_path / "data")
    (release.root / "images").mkdir(parents=True)
    return release


def read(release):
    return read_table(release.tables()).set_index("image_id")


def image_id(name="image"):
    return hashed("img", md5(name), salt="vindr_mammo")


def test_one_row_becomes_one_image(release):
    release.add(grade=4, side="R", view="MLO", split="test")
    row = read(release).loc[image_id()]
    assert (row.laterality, row["view"], row.label, row.assessment) == ("R", "MLO", 1, "4")
    assert (row.density, row.official_split, row.lesions) == ("3", "test", ())
    assert Path(row.path).is_file()


def test_birads_4_and_5_are_malignant(release):
    for grade in range(1, 6):
        release.add(f"image {grade}", f"study {grade}", grade=grade)
    table = read(release)
    assert [table.loc[image_id(f"image {n}")].label for n in range(1, 6)] == [0, 0, 0, 1, 1]


def test_the_study_stands_for_the_patient(release):
    release.add("a", "one")
    release.add("b", "one", view="MLO")
    release.add("c", "two")
    table = read(release)
    assert table.loc[image_id("a")].patient == table.loc[image_id("b")].patient
    assert table.patient.nunique() == table.exam.nunique() == 2


def test_two_images_of_one_side_and_view_stay_two(release):
    release.add("a", side="L", view="CC")
    release.add("b", side="L", view="CC")
    assert len(read(release)) == 2


def test_densities_are_numbered_and_a_missing_one_is_empty(release):
    for letter in "ABCD":
        release.add(letter, letter, breast_density=f"DENSITY {letter}")
    release.add("E", "E", breast_density="")
    table = read(release)
    assert [table.loc[image_id(letter)].density for letter in "ABCDE"] == ["1", "2", "3", "4", ""]


def test_boxes_are_clipped_to_the_image(release):
    release.add(grade=3)
    release.find((-5.5, 3000.25, 120.0, 3525.0), grade=3)
    assert read(release).loc[image_id()].lesions == ((0.0, 3000.25, 120.0, 3518.0),)


def test_a_box_outside_of_its_image_is_left_out_and_counted(release, caplog):
    release.add(grade=3)
    release.find((2801.0, 10.0, 2900.0, 20.0), grade=3)
    assert read(release).loc[image_id()].lesions == ()
    assert "1 findings lie outside of their image" in caplog.text


def test_findings_of_the_images_label_come_first_and_the_largest_first(release):
    release.add(grade=4)
    release.find((0.0, 0.0, 500.0, 500.0), grade=3)
    release.find((1.0, 1.0, 400.0, 400.0), grade="")
    release.find((2.0, 2.0, 20.0, 20.0), grade=5)
    release.find((3.0, 3.0, 90.0, 90.0), grade=4, categories="['Mass', 'Nipple Retraction']")
    release.find((3.0, 3.0, 90.0, 90.0), grade=4, categories="['Skin Thickening']")
    assert [box[2] for box in read(release).loc[image_id()].lesions] == [90.0, 20.0, 500.0, 400.0]


def test_a_row_without_finding_has_no_box(release):
    release.add(grade=1)
    release.find((), categories="['No Finding']")
    assert read(release).loc[image_id()].lesions == ()


@pytest.mark.parametrize(
    "categories",
    [
        "__import__('pathlib').Path('{marker}').touch()",
        "[__import__('pathlib').Path('{marker}').touch()]",
        "Mass",
        "'Mass'",
        "[]",
        "",
        "(" * 900,
        "['Mass'," * 5000,
    ],
)
def test_categories_are_literals_and_never_run(release, tmp_path, categories):
    marker = tmp_path / "ran"
    release.add(grade=3)
    release.find((1.0, 1.0, 9.0, 9.0), categories=categories.format(marker=marker))
    with pytest.raises(UserError, match=r"not a list of names in 1 row \(2\)"):
        read(release)
    assert not marker.exists()


@pytest.mark.parametrize("column", ["study_id", "image_id"])
@pytest.mark.parametrize("identifier", ["../../../outside", "/etc/passwd", "0" * 31, "A" * 32])
def test_an_identifier_that_is_no_digest_is_never_used_as_a_path(release, column, identifier):
    (release.root.parent / "outside.dicom").touch()
    release.add(on_disk=False, **{column: identifier})
    with pytest.raises(UserError, match=f"{column} is not an MD5 digest in 1 row") as caught:
        read(release)
    assert identifier not in str(caught.value)


def test_all_problems_are_told_together_by_row_number_and_without_identifiers(release):
    release.add("a", "one", split="training")
    release.add("b", "one", split="test")
    release.add("c", "two", grade=7)
    release.add("d", "three", on_disk=False)
    release.add("d", "three", on_disk=False)
    release.add("e", "four", side="X", view="XCCL", split="validation", width="wide")
    release.find((5.0, 5.0, 1.0, 1.0), "a", grade=3)
    release.find((1.0, 1.0, 5.0, 5.0), "unheard of", grade=9)
    with pytest.raises(UserError) as caught:
        read(release)
    message = str(caught.value)
    for line in (
        f"{BREAST}: the study is in both training and test in 2 rows (2, 3)",
        f"{BREAST}: breast_birads is not BI-RADS 1 to 5 in 1 row (4)",
        f"{BREAST}: the image is not on disk in 2 rows (5, 6)",
        f"{BREAST}: image_id occurs twice in 1 row (6)",
        f"{BREAST}: laterality is neither L nor R in 1 row (7)",
        f"{BREAST}: view_position is neither CC nor MLO in 1 row (7)",
        f"{BREAST}: split is neither training nor test in 1 row (7)",
        f"{BREAST}: height or width is not a positive number in 1 row (7)",
        f"{FINDINGS}: the finding has no box with xmin < xmax and ymin < ymax in 1 row (2)",
        f"{FINDINGS}: image_id is not in {BREAST} in 1 row (3)",
        f"{FINDINGS}: finding_birads is neither empty nor BI-RADS 1 to 5 in 1 row (3)",
    ):
        assert line in message
    assert not re.search(r"[0-9a-f]{32}|XCCL|wide|validation", message)


@pytest.mark.parametrize(
    ("column", "value"), [("Rows", 99), ("Image Laterality", "R"), ("View Position", "MLO")]
)
def test_metadata_that_contradicts_the_annotations_is_a_problem(release, column, value):
    release.add()
    assert len(read(release)) == 1
    release.rows[METADATA][0][column] = value
    with pytest.raises(UserError, match=rf"is not what {METADATA} says in 1 row \(2\)"):
        read(release)


def test_a_table_without_its_columns_is_a_problem(release):
    release.add()
    root = release.tables()
    (root / FINDINGS).write_text("image_id,xmin\n1,2\n")
    with pytest.raises(UserError, match="no column finding categories, finding birads, ymin"):
        read_table(root)


def test_the_release_is_found_where_wget_puts_it(release, tmp_path):
    release.add()
    nested = tmp_path / "mirror" / "physionet.org" / "files" / "vindr-mammo"
    nested.mkdir(parents=True)
    release.tables().rename(nested / "1.0.0")
    assert len(read_table(tmp_path / "mirror")) == 1


@pytest.mark.parametrize("missing", [METADATA, FINDINGS, "images"])
def test_an_incomplete_release_says_what_is_missing(release, missing):
    release.add()
    root = release.tables()
    (root / missing).rename(root.parent / "elsewhere")
    with pytest.raises(UserError, match=f"{missing}/? missing"):
        read_table(root)


def test_a_missing_dataset_is_one_sentence_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "nowhere")
    message = str(caught.value)
    for part in (str(tmp_path / "nowhere"), *COLUMNS, "PhysioNet", "dataset=phantom"):
        assert part in message
    assert "\n" not in message


def test_a_folder_that_cannot_be_read_is_passed_by_and_counted(tmp_path, monkeypatch):
    scandir = os.scandir

    def guarded(folder):
        if Path(folder).name == "closed":
            raise PermissionError(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)  # the tests may run as root
    (tmp_path / "closed").mkdir()
    with pytest.raises(UserError, match=r"\(1 folder\(s\) there cannot be read") as caught:
        read_table(tmp_path)
    assert "closed" not in str(caught.value)
    release = Release(tmp_path / "open")
    release.add()
    release.tables()
    assert len(read_table(tmp_path)) == 1


@pytest.mark.parametrize("text", ["[{[]: 1}]", "{[]}"])
def test_categories_that_python_cannot_build_are_a_problem(tmp_path, text):
    release = Release(tmp_path)
    release.add()
    release.rows[FINDINGS].append({"image_id": md5("image"), "finding_categories": text})
    with pytest.raises(UserError, match="finding_categories is not a list of names in 1 row"):
        read(release)
