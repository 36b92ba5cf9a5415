"""Whole synthetic VinDr-Mammo releases, written, read, decoded and prepared."""

import ast
import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread

from sgc_experiments.data import load_dataset
from sgc_experiments.data.dicom import read_bytes, read_image, read_stored
from sgc_experiments.data.phantom.render import render_patient
from sgc_experiments.data.phantom.vindr_mammo_layout import PADDED_COLUMNS, write_vindr_mammo
from sgc_experiments.data.vindr_mammo import read_table

PATIENTS, SEED = 10, 0


def write(out, patients=PATIENTS, **options):
    return write_vindr_mammo(out, patients=patients, seed=SEED, **options)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vindr_mammo") / "release", workers=1)


@pytest.fixture(scope="module")
def table(release):
    return read_table(release)


@pytest.fixture(scope="module")
def metadata(release):
    return pd.read_csv(release / "metadata.csv").set_index("SOP Instance UID")


def test_both_classes_are_in_both_official_subsets(table):
    assert len(table.groupby(["official_split", "label"])) == 4


def test_labels_and_boxes_are_those_of_the_rendered_views(release, table):
    breast = pd.read_csv(release / "breast-level_annotations.csv")
    boxes = table.set_index("path")
    studies = list(dict.fromkeys(breast["study_id"]))
    for patient, study in enumerate(studies):
        views = {
            (view.laterality, view.view): view
            for view in render_patient(patient, seed=SEED, difficulty="standard")
        }
        for image in breast[breast["study_id"] == study].itertuples():
            row = boxes.loc[str(release / "images" / study / f"{image.image_id}.dicom")]
            view = views[image.laterality, image.view_position]
            assert row.label == view.malignant
            if not row.lesions:
                assert row.assessment in ("1", "2")
                continue
            shift = image.width - view.pixels.shape[1] if image.laterality == "R" else 0
            drawn = np.concatenate([view.outline.min(0), view.outline.max(0)])
            drawn[::2] += shift
            drawn = np.clip(drawn, 0, (image.width, image.height) * 2)
            assert np.allclose(row.lesions[0], drawn, atol=0.01)


def test_the_planted_quirks_are_there(release, table, metadata):
    header = (release / "metadata.csv").read_text().splitlines()[0]
    assert header.split(",").count("SOP Instance UID") == 2
    assert {"MONOCHROME1", "MONOCHROME2"} == set(metadata["Photometric Interpretation"])
    lists = metadata["Window Center"].astype(str).str.startswith("[")
    assert lists.any()
    assert not lists.all()
    assert ast.literal_eval(metadata.loc[lists, "Window Center"].iloc[0]) == [2048, 1500]
    assert table.duplicated(["exam", "laterality", "view"]).any()
    findings = pd.read_csv(release / "finding_annotations.csv")
    assert (findings["xmin"] < 0).any()
    assert (findings["ymax"] > findings["height"]).any()
    assert (findings["finding_categories"] == "['No Finding']").any()
    assert findings.loc[findings["xmin"].notna(), "finding_birads"].isna().any()
    assert (table["lesions"].map(len) == 0).any()


def test_headers_lack_what_the_release_lacks(release):
    path = next((release / "images").rglob("*.dicom"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = dcmread(path)
        assert "SOPClassUID" not in header
        assert header.file_meta.MediaStorageSOPClassUID == "1.2.3.4"
        assert header.SOPInstanceUID == path.stem
        assert header.StudyInstanceUID == path.parent.name
        assert not header.StudyInstanceUID.is_valid


def test_invalid_identifiers_raise_no_warning_that_could_tell_them(release, caplog):
    path = next((release / "images").rglob("*.dicom"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)
    assert path.stem not in caplog.text


def test_the_first_of_several_windows_is_applied(release, table, metadata):
    several = metadata.index[metadata["Window Center"].astype(str).str.startswith("[")]
    path = next(Path(path) for path in table["path"] if Path(path).stem in several)
    stored, header, _ = read_stored(read_bytes(path))
    center, width = 2048, 4096
    expected = np.clip((stored - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if header.inverted:
        expected = 1 - expected
        expected[stored == 0] = 0
    assert np.abs(read_image(path)[0] / 65535 - expected).max() < 1e-4


def test_inverted_images_are_turned_over_and_their_padding_is_dark(table, metadata):
    inverted = metadata.index[metadata["Photometric Interpretation"] == "MONOCHROME1"]
    rows = table[table["path"].map(lambda path: Path(path).stem in inverted)]
    assert set(rows["laterality"]) == {"L", "R"}
    for row in rows.itertuples():
        stored, header, _ = read_stored(read_bytes(Path(row.path)))
        image, _ = read_image(Path(row.path))
        away = slice(-PADDED_COLUMNS, None) if row.laterality == "L" else slice(PADDED_COLUMNS)
        assert header.inverted
        assert (stored[:, away] == 0).all()  # would shine if it were turned over
        assert (image[:, away] == 0).all()
        chest = image[:, :20] if row.laterality == "L" else image[:, -20:]
        assert chest.mean() > 3 * image[:, ::20].min()


def test_a_burnt_in_marker_is_not_the_breast(release):
    dataset = load(release, "whole", 64)
    shown = dataset.images > 0
    # Only the breast and its skin line are left, and the upper corner opposite the chest is air.
    assert not shown[:, :4, -12:].any()


@pytest.mark.parametrize("syntax", ["rle", "jpegls", "j2k"])
def test_every_syntax_holds_the_same_pixels(release, tmp_path, syntax):
    out = write(tmp_path / "out", patients=2, syntax=syntax, workers=1)
    files = list((out / "images").rglob("*.dicom"))
    assert len(files) >= 4
    for path in files:
        stored, header, _ = read_stored(read_bytes(path))
        expected, native, _ = read_stored(read_bytes(release / path.relative_to(out)))
        assert header.syntax != native.syntax
        assert np.array_equal(stored, expected)


def test_checksums_are_those_of_the_files(release):
    lines = (release / "SHA256SUMS.txt").read_text().splitlines()
    assert len(lines) == len(list((release / "images").rglob("*.dicom"))) + 3
    for line in lines:
        digest, name = line.split(" ", 1)
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest


def test_the_same_seed_gives_the_same_bytes_however_many_patients(release, tmp_path):
    few = set((write(tmp_path / "out", patients=2) / "SHA256SUMS.txt").read_text().splitlines())
    many = set((release / "SHA256SUMS.txt").read_text().splitlines())
    assert len(few - many) == 3  # the tables
    assert len(few) > 6


def load(release, input, size):
    return load_dataset(
        "vindr_mammo",
        data_dir=release,
        cache_dir=release.parent / "cache",
        input=input,
        image_size=size,
        workers=1,
        progress=False,
    )


def test_a_release_becomes_lesion_crops_and_counts_images_without_lesion(release, table):
    dataset = load(release, "roi", 32)
    without = table.loc[table["lesions"].map(len) == 0, "image_id"]
    assert set(dataset.quarantine["image_id"]) == set(without)
    assert dataset.quarantine["reason"].unique().tolist() == ["no lesion annotated"]
    assert dataset.images.shape == (len(table) - len(without), 32, 32)
    assert np.isfinite(dataset.boxes).all()
    centres = dataset.boxes.reshape(-1, 2, 2).mean(1)
    assert np.abs(centres - 16).max() < 2
