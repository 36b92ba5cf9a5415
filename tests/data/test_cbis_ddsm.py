"""The CBIS-DDSM reader, on hand-made releases: one small trap each."""

import csv
import itertools
import logging
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sgc_experiments.data import load_dataset
from sgc_experiments.data.cbis_ddsm import read_table
from sgc_experiments.data.cbis_ddsm_masks import CACHE_NAME, LesionMask, find_box, image_size
from sgc_experiments.data.phantom.cbis_ddsm_layout import CASE_COLUMNS
from sgc_experiments.data.phantom.dicom_writer import write_dicom
from sgc_experiments.data.rejection import Reason, RejectedFile
from sgc_experiments.data.schema import get_quarantine, get_unboxed, hashed
from sgc_experiments.errors import UserError

IMAGE_SHAPE = (96, 64)
CROP_SHAPE = (40, 36)
BOX = (10, 20, 30, 50)  # x0, y0, x1, y1
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def mask_of(box, shape=IMAGE_SHAPE):
    mask = np.zeros(shape, np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 255
    return mask


def texture(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**16, shape).astype(np.uint16)


class Release:
    """A classic release that grows row by row."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = {
            (kind, subset): [] for kind in ("Mass", "Calc") for subset in ("Training", "Test")
        }
        self.serial = 10_000

    def series(self, folder, *files, names=("000000.dcm", "000001.dcm")):
        """Write one series; returns the references of its files."""
        self.serial += 2
        study, series = f"1.3.6.{self.serial + 1}", f"1.3.6.{self.serial}"
        where = self.root / "CBIS-DDSM" / folder / study / series
        where.mkdir(parents=True)
        for name, pixels in zip(names, files, strict=False):
            write_dicom(
                where / name,
                pixels,
                uid_seed=str(where / name),
                bits_stored=8 * pixels.dtype.itemsize,
                sop_class=SECONDARY_CAPTURE,
            )
        return [f"{folder}/{study}/{series}/{number:06d}.dcm" for number in range(len(files))]

    def add(self, patient=1, pathology="BENIGN", *, kind="Mass", subset="Training", side="LEFT",
            view="CC", number=1, box=None, image=None, lesion=("", ""), **fields):  # fmt: skip
        """Add a case row with its image, and a mask if there is a box.

        `image` and `lesion` are references to take instead; without a mask no decoder is started.
        """
        folder = f"{kind}-{subset}_P_{patient:05d}_{side}_{view}"
        image = image or self.series(folder, texture(IMAGE_SHAPE))[0]
        if box is not None:
            lesion = self.series(f"{folder}_{number}", texture(CROP_SHAPE), mask_of(box))
        crop, mask = lesion
        density = "breast_density" if kind == "Mass" else "breast density"
        row = {
            "patient_id": f"P_{patient:05d}",
            density: 2,
            "left or right breast": side,
            "image view": view,
            "abnormality id": number,
            "pathology": pathology,
            "image file path": image,
            "cropped image file path": crop,
            "ROI mask file path": f"{mask}\n",
        }
        self.rows[kind, subset].append(row | fields)
        return image

    def tables(self):
        """Write the four case tables; returns the root."""
        for (kind, subset), rows in self.rows.items():
            name = f"{kind}_case_description_{subset.replace('ing', '')}_set.csv".lower()
            with (self.root / name).open("w", newline="") as file:
                writer = csv.DictWriter(
                    file, CASE_COLUMNS[kind].split(","), restval="", lineterminator="\r\n"
                )
                writer.writeheader()
                writer.writerows(rows or [])
        return self.root


@pytest.fixture
def release(tmp_path):
    """A release with one patient in each of the three tables that the tests seldom touch."""
    release = Release(tmp_path / "data")
    release.root.mkdir()
    release.add(901, kind="Mass", subset="Test")
    release.add(902, kind="Calc", subset="Training")
    release.add(903, kind="Calc", subset="Test")
    return release


def read(release, **options):
    return read_table(release.tables(), workers=1, **options).set_index("image_id")


def image_id(patient=1, side="LEFT", view="CC"):
    return hashed("img", f"P_{patient:05d}", side, view, salt="cbis_ddsm")


def test_one_row_becomes_one_image(release):
    release.add(1, "MALIGNANT", side="RIGHT", view="MLO", box=BOX)
    row = read(release).loc[image_id(1, "RIGHT", "MLO")]
    assert (row.laterality, row["view"], row.label, row.assessment) == ("R", "MLO", 1, "MALIGNANT")
    assert (row.density, row.official_split) == ("2", "train")
    assert row.lesions == (tuple(map(float, BOX)),)
    assert Path(row.path).is_file()


def test_the_patient_is_not_the_dicom_patient_id(release):
    release.add(1, side="LEFT", view="CC")
    release.add(1, side="RIGHT", view="MLO")
    table = read(release)
    assert table.loc[image_id(1)].patient == table.loc[image_id(1, "RIGHT", "MLO")].patient
    assert table.patient.nunique() == 4


@pytest.mark.parametrize("pathology", ["BENIGN", "BENIGN_WITHOUT_CALLBACK"])
def test_benign_with_and_without_callback_are_benign(release, pathology):
    release.add(1, pathology)
    assert read(release).loc[image_id()].label == 0


def test_an_image_with_a_benign_and_a_malignant_abnormality_is_malignant(release):
    small, large, larger = (2, 2, 6, 6), (10, 10, 40, 40), (0, 0, 60, 90)
    image = release.add(1, "BENIGN", number=1, box=larger)
    release.add(1, "MALIGNANT", number=2, box=small, image=image)
    release.add(1, "MALIGNANT", number=3, box=large, image=image)
    row = read(release).loc[image_id()]
    assert row.label == 1
    # Those of the image's label first, the largest first: a crop must show what the label says.
    assert row.lesions == tuple(tuple(map(float, box)) for box in (large, small, larger))


def test_a_view_in_both_tables_is_one_image_and_malignant_if_either_says_so(release):
    release.add(1, "BENIGN", kind="Mass", box=(0, 0, 20, 20))
    release.add(1, "MALIGNANT", kind="Calc", box=(30, 30, 40, 40))
    table = read(release)
    row = table.loc[image_id()]
    assert (table.patient == row.patient).sum() == 1
    assert row.label == 1
    assert "Calc-Training" in row.path
    assert row.lesions == ((30.0, 30.0, 40.0, 40.0), (0.0, 0.0, 20.0, 20.0))


@pytest.mark.parametrize("malignant", ["Mass", "Calc"])
def test_the_choice_of_abnormality_changes_no_label(release, malignant):
    boxes = {"Mass": (0, 0, 20, 20), "Calc": (30, 30, 40, 40)}
    for kind, box in boxes.items():
        release.add(1, "MALIGNANT" if kind == malignant else "BENIGN", kind=kind, box=box)
    for choice, kind in (("mass", "Mass"), ("calc", "Calc")):
        table = read(release, abnormality=choice)
        row = table.loc[image_id()]
        assert (row.label, row.assessment) == (1, "MALIGNANT")
        assert f"{kind}-Training" in row.path
        # A crop of the benign lesion would not show what its label says.
        own = (tuple(map(float, boxes[kind])),)
        assert row.lesions == (own if kind == malignant else ())
        why = get_unboxed(table).get(image_id())
        assert why == (None if kind == malignant else Reason.OTHER_LESION)


def test_the_other_kind_needs_its_tables_but_no_images(release):
    release.add(1)
    root = release.tables()
    for folder in (root / "CBIS-DDSM").glob("Calc-*"):
        shutil.rmtree(folder)
    assert len(read_table(root, abnormality="mass", workers=1)) == 2
    with pytest.raises(UserError, match="the image is not on disk"):
        read_table(root, workers=1)
    (root / "calc_case_description_train_set.csv").unlink()
    with pytest.raises(UserError, match="calc_case_description_train_set"):
        read_table(root, abnormality="mass", workers=1)


@pytest.fixture
def leaking(release):
    """Patient 1 has one view in both subsets, one in training and one in test only."""
    release.add(1, kind="Mass", subset="Training", view="CC")
    release.add(1, kind="Mass", subset="Training", view="MLO")
    release.add(1, "MALIGNANT", kind="Calc", subset="Test", view="CC")
    release.add(1, kind="Calc", subset="Test", side="RIGHT")
    return release


def test_leaking_patients_are_dropped_from_test_by_default_and_counted(leaking, caplog):
    with caplog.at_level(logging.INFO, "sgc_experiments.data"):
        table = read(leaking)
    mine = table[table.patient == hashed("pat", "P_00001", salt="cbis_ddsm")]
    assert set(mine.index) == {image_id(1), image_id(1, view="MLO")}
    assert set(mine.official_split) == {"train"}
    assert all("Mass-Training" in path for path in mine.path)
    # What the dropped rows say about a kept image is still true of it.
    assert mine.loc[image_id()].label == 1
    message = next(r.getMessage() for r in caplog.records if "both the official" in r.getMessage())
    assert message.startswith("CBIS-DDSM: 1 patients")
    assert "1 of their images" in message
    assert "P_" not in caplog.text
    assert get_quarantine(table) == {image_id(1, "RIGHT"): Reason.LEAK}


def test_leaking_patients_can_be_dropped_from_training(leaking):
    table = read(leaking, on_leak="drop_train")
    assert get_quarantine(table) == {image_id(1, view="MLO"): Reason.LEAK}
    mine = table[table.patient == hashed("pat", "P_00001", salt="cbis_ddsm")]
    assert set(mine.index) == {image_id(1), image_id(1, "RIGHT")}
    assert set(mine.official_split) == {"test"}


def test_leaking_patients_can_be_refused(leaking):
    with pytest.raises(UserError, match="1 CBIS-DDSM patients are in both"):
        read(leaking, on_leak="error")
    assert len(read(leaking, on_leak="error", abnormality="mass")) == 3


@pytest.mark.parametrize(("option", "value"), [("on_leak", "drop"), ("abnormality", "tumour")])
def test_an_unknown_option_is_refused(release, option, value):
    with pytest.raises(UserError, match=f"{option} must be one of"):
        read(release, **{option: value})


def lesion_of(release, *series):
    """The lesion whose candidates are the files of some series, as `find_box` takes it."""
    image = release.series("Mass-Training_P_00001_LEFT_CC", texture(IMAGE_SHAPE))
    references = itertools.chain(image, *series)
    paths = [release.root / "CBIS-DDSM" / reference for reference in references]
    files = [file for path in paths for file in sorted(path.parent.iterdir())]
    return LesionMask(files[0], tuple(dict.fromkeys(files[1:])))


FOLDER = "Mass-Training_P_00001_LEFT_CC_1"


@pytest.mark.parametrize("swapped", [False, True])
def test_mask_and_crop_in_one_series_are_told_apart_by_content(release, swapped):
    files = [texture(CROP_SHAPE), mask_of(BOX)]
    series = release.series(FOLDER, *(files[::-1] if swapped else files))
    assert find_box(lesion_of(release, series)) == BOX


@pytest.mark.parametrize("swapped", [False, True])
def test_mask_and_crop_with_one_name_in_two_series_are_told_apart(release, swapped):
    name = ("1-1.dcm",)
    crop = release.series(FOLDER, texture(CROP_SHAPE), names=name)
    mask = release.series(FOLDER, mask_of(BOX), names=name)
    assert find_box(lesion_of(release, *((mask, crop) if swapped else (crop, mask)))) == BOX


def test_a_mask_of_another_size_is_resized_to_its_image(release):
    half = mask_of((5, 10, 15, 25), (IMAGE_SHAPE[0] // 2, IMAGE_SHAPE[1] // 2))
    series = release.series(FOLDER, texture(CROP_SHAPE), half)
    assert find_box(lesion_of(release, series)) == BOX


@pytest.mark.parametrize(
    "second",
    [np.zeros(IMAGE_SHAPE, np.uint8), texture(CROP_SHAPE, 1), None],
    ids=["an empty mask", "two crops", "a missing file"],
)
def test_without_a_mask_there_is_no_box(release, second):
    files = [texture(CROP_SHAPE)] + ([] if second is None else [second])
    assert find_box(lesion_of(release, release.series(FOLDER, *files))) is None


def test_a_jpeg_mask_is_recognised_in_spite_of_its_blurred_outline(release):
    lesion = lesion_of(release, release.series(FOLDER, texture(CROP_SHAPE), mask_of(BOX)))
    crop = cv2.GaussianBlur((texture(CROP_SHAPE) >> 8).astype(np.uint8), (0, 0), 2)
    for path, pixels in zip(lesion.candidates, (crop, mask_of(BOX)), strict=True):
        path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    assert find_box(lesion) == BOX


def test_the_image_size_is_read_without_the_pixels(release):
    lesion = lesion_of(release, release.series(FOLDER, mask_of(BOX)))
    assert image_size(lesion.image) == IMAGE_SHAPE
    lesion.image.write_bytes(lesion.image.read_bytes()[:1000])
    assert image_size(lesion.image) == IMAGE_SHAPE
    for junk in (b"", b"junk", lesion.image.read_bytes()[:200], b"\xff\xd8\xff"):
        lesion.image.write_bytes(junk)
        with pytest.raises(RejectedFile):
            image_size(lesion.image)


def test_a_deflated_header_is_not_expanded_for_its_size(release):
    lesion = lesion_of(release, release.series(FOLDER, mask_of(BOX)))
    dataset = dcmread(lesion.image)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(lesion.image)
    with pytest.raises(RejectedFile, match="transfer syntax"):
        image_size(lesion.image)


def test_a_broken_mask_costs_its_own_lesion_only_and_is_counted(release, caplog):
    release.add(1, box=BOX)
    release.add(2, box=BOX)
    mask = next((release.root / "CBIS-DDSM" / FOLDER).rglob("000001.dcm"))
    mask.write_bytes(mask.read_bytes()[:-500])
    table = read(release)
    assert table.loc[image_id(1)].lesions == ()
    assert table.loc[image_id(2)].lesions == (tuple(map(float, BOX)),)
    assert "4 lesions have no readable mask" in caplog.text  # three have none at all
    assert set(get_unboxed(table).values()) == {Reason.BAD_ANNOTATION}


def test_whatever_is_left_out_stands_in_the_quarantine(leaking, tmp_path):
    leaking.add(2, "MALIGNANT", box=BOX)
    leaking.add(2, "BENIGN", side="RIGHT", box=BOX)
    leaking.add(3)
    leaking.tables()
    dataset = load_dataset(
        "cbis_ddsm", data_dir=leaking.root, cache_dir=tmp_path / "cache", input="roi",
        image_size=32, workers=1, progress=False,
    )  # fmt: skip
    assert len(dataset.table) == 2
    reasons = dataset.quarantine.set_index("image_id")["reason"]
    assert reasons[image_id(1, "RIGHT")] == Reason.LEAK
    assert reasons[image_id(3)] == Reason.BAD_ANNOTATION
    assert set(reasons) == {Reason.LEAK, Reason.BAD_ANNOTATION}


def test_a_mask_that_cannot_be_read_for_a_while_is_not_taken_for_none(release):
    release.add(1, box=BOX)
    mask = next((release.root / "CBIS-DDSM" / FOLDER).rglob("000001.dcm"))
    content = mask.read_bytes()
    mask.unlink()
    os.mkfifo(mask)  # nobody can read it, not even root
    with pytest.raises(RejectedFile, match="cannot be read"):
        find_box(LesionMask(mask.with_name("image.dcm"), (mask,)))
    mask.unlink()
    mask.write_bytes(content)
    assert read(release).loc[image_id()].lesions == (tuple(map(float, BOX)),)


def test_a_link_that_leads_nowhere_is_no_file(release):
    release.add(1, box=BOX)
    mask = next((release.root / "CBIS-DDSM" / FOLDER).rglob("000001.dcm"))
    mask.unlink()
    mask.symlink_to("/nowhere/annex/object")
    table = read(release)
    assert table.loc[image_id()].lesions == ()
    assert get_unboxed(table)[image_id()] == Reason.BAD_ANNOTATION


def test_missing_values_and_density_zero(release):
    release.add(1, breast_density=0)
    release.add(2, breast_density="", **{"mass shape": "", "assessment": ""})
    table = read(release)
    assert table.loc[image_id(1)].density == table.loc[image_id(2)].density == ""


def test_folder_names_are_compared_case_insensitively(release):
    release.add(1)
    folder = release.root / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC"
    folder.rename(folder.with_name("mass-training_p_00001_left_cc"))
    assert image_id() in read(release).index


def test_line_breaks_and_blanks_around_fields_are_stripped(release):
    release.add(1, pathology=" MALIGNANT \n", patient_id="P_00001 ")
    release.rows["Mass", "Training"][0]["image file path"] += "\r\n"
    assert read(release).loc[image_id()].label == 1


def write_metadata(release, location):
    header = "Series UID,Subject ID,File Location\n"
    rows = release.rows["Mass", "Training"]
    folder, _, series, _ = rows[0]["image file path"].split("/")
    (release.root / "metadata.csv").write_text(f"{header}{series},{folder},{location}\n")


@pytest.mark.parametrize("location", ["./CBIS-DDSM/strange/place", r".\CBIS-DDSM\strange\place"])
def test_metadata_finds_series_whose_folders_say_nothing(release, location):
    reference = release.add(1)
    old = (release.root / "CBIS-DDSM" / reference).parent
    new = release.root / "CBIS-DDSM" / "strange" / "place"
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(UserError, match="the image is not on disk in 1 row"):
        read(release)
    write_metadata(release, location)
    assert Path(read(release).loc[image_id()].path).parent == new


@pytest.mark.parametrize("location", ["../outside", "./CBIS-DDSM/../../outside", "{outside}"])
def test_a_location_in_metadata_never_leads_out_of_the_release(release, location):
    reference = release.add(1)
    outside = release.root.parent / "outside"
    (release.root / "CBIS-DDSM" / reference).parent.rename(outside)
    write_metadata(release, location.format(outside=outside))
    with pytest.raises(UserError, match="the image is not on disk in 1 row"):
        read(release)


@pytest.mark.parametrize("prefix", ["../../{}", "/{}", "Mass-Training_P_00001_LEFT_CC/../../{}"])
def test_a_path_in_a_case_table_never_leads_out_of_the_release(release, prefix):
    reference = release.add(1)
    outside = release.root.parent / "outside.dcm"
    (release.root / "CBIS-DDSM" / reference).rename(outside)
    release.rows["Mass", "Training"][0]["image file path"] = prefix.format(outside)
    with pytest.raises(UserError, match="the image is not on disk in 1 row"):
        read(release)


def test_a_release_that_is_linked_into_place_is_found(release, tmp_path):
    release.add(1)
    root = release.tables()
    linked = tmp_path / "linked"
    linked.mkdir()
    os.symlink(root, linked / "CBIS")
    os.symlink(linked, root / "circle")
    assert len(read_table(linked, workers=1)) == 4


def test_all_problems_are_told_together_by_row_number_and_without_identifiers(release):
    release.add(1)
    release.add(2, pathology="UNKNOWN")
    release.add(3, **{"image view": "XCCL"})
    release.add(4, image="Mass-Training_P_00004_LEFT_CC/1.2/1.3.99999/000000.dcm")
    release.add(5, image="Mass-Training_P_00005_LEFT_CC/1.2/1.3.99998/000000.dcm")
    release.add(6, kind="Calc", patient_id="SMITH")
    with pytest.raises(UserError) as caught:
        read(release)
    message = str(caught.value)
    for line in (
        "mass_case_description_train_set.csv: image view is neither CC nor MLO in 1 row (4)",
        "mass_case_description_train_set.csv: pathology is none of MALIGNANT, BENIGN, "
        "BENIGN_WITHOUT_CALLBACK in 1 row (3)",
        "the image is not on disk in 2 rows (5, 6)",
        "calc_case_description_train_set.csv: patient_id is not P_ and a number in 1 row (3)",
        "image file path names another view, or none in 1 row (4)",
    ):
        assert line in message
    assert not re.search(r"P_0000[1-9]|SMITH|XCCL|1\.3\.", message)


def test_a_table_whose_folder_contradicts_its_row_is_a_problem(release):
    release.add(1, **{"left or right breast": "RIGHT"})
    with pytest.raises(UserError, match=r"names another view, or none in 1 row \(2\)"):
        read(release)


def test_several_files_for_one_image_are_a_problem(release):
    reference = release.add(1)
    image = release.root / "CBIS-DDSM" / reference
    image.with_name("copy.dcm").write_bytes(image.read_bytes())
    with pytest.raises(UserError, match=r"several files lie where one image is expected in 1 row"):
        read(release)


def test_a_case_table_without_its_columns_is_a_problem(release):
    root = release.tables()
    (root / "mass_case_description_train_set.csv").write_text("patient_id,pathology\nP_00001,x\n")
    with pytest.raises(UserError, match="no column breast density, left or right breast"):
        read_table(root, workers=1)


def test_empty_case_tables_are_refused_together(tmp_path):
    with pytest.raises(UserError, match=r"case tables in .* are empty"):
        read_table(Release(tmp_path).tables())


def test_two_different_tables_of_one_name_are_a_problem(release):
    release.add(1)
    root = release.tables()
    table = root / "mass_case_description_train_set.csv"
    (root / "old").mkdir()
    (root / "old" / table.name).write_bytes(table.read_bytes())
    assert len(read_table(root, workers=1)) == 4
    (root / "old" / table.name).write_text("patient_id\n")
    with pytest.raises(UserError, match="2 files of that name differ in content"):
        read_table(root, workers=1)


def test_a_missing_dataset_is_one_sentence_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "nowhere")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message
    for part in (
        "mass_case_description_train_set.csv",
        "The Cancer Imaging Archive",
        "dataset=phantom",
    ):
        assert part in message
    assert "\n" not in message


def test_boxes_are_remembered_until_a_mask_changes(release, tmp_path):
    release.add(1, box=BOX)
    cache = tmp_path / "cache"
    first = read(release, cache_dir=cache)
    folder = release.root / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC_1"
    mask = next(folder.rglob("000001.dcm"))
    status = mask.stat()
    mask.write_bytes(bytes(status.st_size))
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read(release, cache_dir=cache).equals(first)
    os.utime(mask)
    assert read(release, cache_dir=cache).loc[image_id()].lesions == ()
    assert not re.search(r"P_0|1\.3\.6|dcm", (cache / CACHE_NAME).read_text())


def test_a_damaged_cache_is_read_anew(release, tmp_path):
    release.add(1, box=BOX)
    (tmp_path / CACHE_NAME).write_text('{"half a fi')
    assert read(release, cache_dir=tmp_path).loc[image_id()].lesions
