"""Whole synthetic CBIS-DDSM releases, written, read, decoded and prepared."""

import functools
import hashlib
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread

from sgc_experiments.data import load_dataset
from sgc_experiments.data.cbis_ddsm import read_table
from sgc_experiments.data.dicom import read_bytes, read_image, read_stored
from sgc_experiments.data.phantom import cbis_ddsm_layout
from sgc_experiments.data.phantom.cbis_ddsm_layout import write_cbis_ddsm
from sgc_experiments.data.phantom.cbis_ddsm_paths import Style
from sgc_experiments.data.phantom.render import render_patient
from sgc_experiments.data.rejection import Reason
from sgc_experiments.data.schema import hashed
from sgc_experiments.errors import UserError

PATIENTS, SEED = 10, 0
STYLES = get_args(Style)
SIDES = {"L": "LEFT", "R": "RIGHT"}


def write(out, style="classic", patients=PATIENTS, **options):
    return write_cbis_ddsm(out, patients=patients, seed=SEED, style=style, **options)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """The same ten patients in every layout, in one folder that also keeps the lesion boxes."""
    root = tmp_path_factory.mktemp("cbis_ddsm")
    with pytest.MonkeyPatch.context() as patch:
        # Every layout shows the same views: render them once.
        patch.setattr(cbis_ddsm_layout, "render_patient", functools.cache(render_patient))
        for style in STYLES:
            write(root / style, style, workers=1)
    return root


def reading(releases):
    return {"cache_dir": releases / "cache", "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def tables(releases):
    return {style: read_table(releases / style, **reading(releases)) for style in STYLES}


@pytest.fixture(scope="module")
def truth():
    """The rendered views by `image_id`."""
    views = (
        view
        for patient in range(PATIENTS)
        for view in render_patient(patient, seed=SEED, difficulty="standard")
    )
    return {
        hashed("img", f"P_{v.patient + 1:05d}", SIDES[v.laterality], v.view, salt="cbis_ddsm"): v
        for v in views
    }


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("style", STYLES)
def test_every_layout_is_read_as_the_same_table(tables, style):
    def without_path(table: pd.DataFrame) -> pd.DataFrame:
        return table.drop(columns="path")

    assert without_path(tables[style]).equals(without_path(tables["classic"]))


def test_labels_and_boxes_are_those_of_the_rendered_views(tables, truth):
    table = tables["classic"].set_index("image_id")
    assert len(table) >= 20
    for image_id, row in table.iterrows():
        view = truth[image_id]
        assert row.label == view.malignant
        height, width = view.pixels.shape
        drawn = np.concatenate([view.outline.min(0), view.outline.max(0) + 1])
        drawn = np.clip(drawn, 0, (width, height, width, height))
        # A mask of another size is accurate to its own pixels.
        assert np.abs(np.array(row.lesions[0]) - drawn).max() < 2.5


def test_both_classes_are_in_both_official_subsets(tables):
    assert len(tables["classic"].groupby(["official_split", "label"])) == 4


def test_the_planted_quirks_are_there(releases, tables):
    cases = {
        name: (releases / "classic" / f"{name}_set.csv").read_bytes()
        for name in ("mass_case_description_train", "calc_case_description_train",
                     "calc_case_description_test")
    }  # fmt: skip
    assert all(b'.dcm\n"\r\n' in content for content in cases.values())
    assert b"breast_density" in cases["mass_case_description_train"].splitlines()[0]
    assert b"breast density" in cases["calc_case_description_train"].splitlines()[0]
    tests = set(re.findall(rb"P_\d+", cases["calc_case_description_test"]))
    leaking = tests & set(re.findall(rb"P_\d+", cases["mass_case_description_train"]))
    assert len(leaking) == 2
    twice = set(re.findall(rb"^P_\d+", cases["calc_case_description_train"], re.MULTILINE))
    assert twice & set(re.findall(rb"P_\d+", cases["mass_case_description_train"]))
    assert tables["classic"]["lesions"].map(len).max() == 2
    assert (tables["classic"]["density"] == "").any()


def test_masks_have_other_sizes_and_stand_under_the_crops_name(releases):
    frame = pd.read_csv(releases / "classic" / "mass_case_description_train_set.csv")
    sizes, swapped = set(), []
    for reference in frame["cropped image file path"]:
        stored = read_stored(read_bytes(releases / "classic" / "CBIS-DDSM" / reference))[0]
        swapped.append(stored.dtype == np.uint8)
        if swapped[-1]:
            sizes.add(stored.shape)
    assert any(swapped)
    assert not all(swapped)
    assert len(sizes) == 2


def test_mask_and_crop_share_a_name_in_the_newer_layouts(releases):
    root = releases / "nbia"
    folders = [path.parent for path in root.rglob("1-1.dcm") if "cropped" in path.parent.name]
    assert folders
    for folder in folders:
        mask = next(folder.parent.parent.rglob("*ROI mask images*/1-1.dcm"))
        assert mask.name == "1-1.dcm"


def test_windows_separators_stand_in_the_newer_metadata(releases):
    newer = pd.read_csv(next((releases / "newer").rglob("metadata.csv")))
    assert newer["File Location"].str.startswith(".\\CBIS-DDSM\\").all()
    nbia = pd.read_csv(next((releases / "nbia").rglob("metadata.csv")))
    assert nbia["File Location"].str.startswith("./CBIS-DDSM/").all()


def test_the_jpeg_mirror_leaves_some_descriptions_out(releases):
    info = pd.read_csv(releases / "kaggle_jpeg" / "csv" / "dicom_info.csv")
    assert info["SeriesDescription"].isna().any()
    assert all((releases / "kaggle_jpeg" / p.partition("/")[2]).is_file() for p in info.image_path)


def test_the_jpeg_mirror_is_read_without_its_index(releases, tables):
    index = releases / "kaggle_jpeg" / "csv" / "dicom_info.csv"
    hidden = index.rename(index.with_suffix(".hidden"))
    try:
        assert read_table(releases / "kaggle_jpeg", **reading(releases)).equals(
            tables["kaggle_jpeg"]
        )
    finally:
        hidden.rename(index)


def test_images_are_secondary_capture_over_the_full_range(releases, tables, truth):
    row = tables["classic"].iloc[0]
    header = dcmread(row.path)
    assert header.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (header.Modality, header.BitsStored) == ("MG", 16)
    assert header.PatientID == Path(row.path).parts[-4]
    assert np.array_equal(header.pixel_array, truth[row.image_id].pixels << 4)


@pytest.mark.parametrize("syntax", ["rle", "jpegls", "j2k"])
def test_every_syntax_holds_the_same_pixels_and_masks(tables, releases, tmp_path, syntax):
    patients = 2
    write(tmp_path / "out", patients=patients, syntax=syntax, workers=1)
    files = list((tmp_path / "out" / "CBIS-DDSM").rglob("*.dcm"))
    assert len(files) > 4
    for path in files:
        native = releases / "classic" / path.relative_to(tmp_path / "out")
        stored, header, _ = read_stored(read_bytes(path))
        expected, native_header, _ = read_stored(read_bytes(native))
        assert header.syntax != native_header.syntax
        assert np.array_equal(stored, expected)


def test_the_same_seed_gives_the_same_bytes_however_many_patients(releases, tmp_path):
    few = digests(write(tmp_path / "out", patients=2) / "CBIS-DDSM")
    assert len(few) > 10
    assert few.items() <= digests(releases / "classic" / "CBIS-DDSM").items()


def test_a_release_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cbis_ddsm_layout, "_write_tables", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "out", patients=1)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "baroque"}, "style"),
        ({"syntax": "bmp"}, "syntax"),
        ({"difficulty": "nightmare"}, "difficulty"),
        ({"patients": 0}, "patients"),
        ({"style": "kaggle_jpeg", "syntax": "rle"}, "syntax"),
    ],
)
def test_an_impossible_request_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def load(releases, style, input, image_size):
    return load_dataset(
        "cbis_ddsm",
        data_dir=releases / style,
        cache_dir=releases / "cache",
        input=input,
        image_size=image_size,
        workers=1,
        reader_options=reading(releases),
        progress=False,
    )


@pytest.mark.parametrize("style", STYLES)
def test_a_release_becomes_lesion_crops(releases, tables, style):
    dataset = load(releases, style, "roi", 32)
    assert set(dataset.quarantine["reason"]) == {Reason.LEAK}
    assert dataset.images.shape == (len(tables[style]), 32, 32)
    assert set(dataset.table["label"]) == {0, 1}
    # The lesion lies in the middle of its crop, and what lies there is tissue, not air.
    centres = dataset.boxes.reshape(-1, 2, 2).mean(1)
    assert np.abs(centres - 16).max() < 2
    assert np.median(dataset.images[:, 12:20, 12:20]) > 5000


def test_a_release_becomes_whole_breasts_with_the_chest_wall_to_the_left(releases, tables):
    dataset = load(releases, "newer", "whole", 48)
    assert len(dataset.images) == len(tables["newer"])
    assert dataset.images[:, :, :8].mean() > dataset.images[:, :, -8:].mean()


def test_the_jpeg_mirror_holds_the_upper_eight_bits(tables):
    paths = [tables[style].set_index("image_id")["path"] for style in ("classic", "kaggle_jpeg")]
    image_id = paths[0].index[0]
    stored, _, _ = read_stored(read_bytes(Path(paths[0][image_id])))
    mirrored, _ = read_image(Path(paths[1][image_id]))
    assert np.abs((stored >> 8).astype(int) - mirrored // 257).mean() < 2
