import ast
import hashlib
import json
import os
import plistlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from sgc_experiments.data.phantom import inbreast_layout
from sgc_experiments.data.phantom.inbreast_layout import RELEASE, TRUTH, write_inbreast
from sgc_experiments.errors import UserError

ARGUMENTS = {"patients": 24, "seed": 5, "difficulty": "hard", "progress": False}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release written by one process."""
    return write_inbreast(tmp_path_factory.mktemp("one") / "phantom", workers=1, **ARGUMENTS)


@pytest.fixture(scope="module")
def table(release):
    return pd.read_csv(release / "INbreast.csv", sep=";", dtype=str)


@pytest.fixture(scope="module")
def regions(release):
    """File number → regions of interest."""
    return {
        path.stem: plistlib.loads(path.read_bytes())["Images"][0]["ROIs"]
        for path in (release / "AllXML").iterdir()
    }


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _points(region: dict) -> np.ndarray:
    return np.array([ast.literal_eval(point) for point in region["Point_px"]])


def test_same_bytes_whatever_the_number_of_workers(release, tmp_path):
    again = write_inbreast(tmp_path / "phantom", workers=2, **ARGUMENTS)
    digests = _digests(release.parent)
    assert digests == _digests(again.parent)
    assert len([name for name in digests if name.endswith(".dcm")]) >= 48


def test_fewer_patients_are_the_first_of_more(release, tmp_path):
    small = write_inbreast(tmp_path / "phantom", workers=1, **{**ARGUMENTS, "patients": 10})
    many, few = _digests(release / "AllDICOMs"), _digests(small / "AllDICOMs")
    assert few.items() <= many.items()


def test_table_looks_like_the_release(release, table):
    text = (release / "INbreast.csv").read_bytes().decode()
    assert text.startswith(
        "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads\r\n"
        "removed;removed;"
    )
    assert text.count("\r\n") == text.count("\n") == len(table) + 1
    assert (table["View"] == "FB").sum() == 1
    assert set(table["View"]) == {"CC", "MLO", "FB"}
    assert (table["ACR"].str.strip() == "").sum() == 1
    assert set(table["Bi-Rads"]) <= {"1", "2", "3", "4a", "4b", "4c", "5", "6"}
    assert {"1", "2", "3", "4a", "5"} <= set(table["Bi-Rads"])
    assert table["File Name"].is_unique


def test_labels_follow_from_the_assessment(release, table):
    truth = pd.read_csv(release.parent / TRUTH)
    truth["File Name"] = truth["file_name"].str.split("_").str[0]
    both = table.merge(truth, on="File Name", validate="one_to_one")
    assert len(both) == len(table)
    assert ((both["Bi-Rads"].str[0] >= "4") == (both["malignant"] == 1)).all()
    per_patient = truth.groupby("patient")["malignant"].agg(["min", "max"])
    assert (per_patient["min"] == per_patient["max"]).all()
    assert 0.3 <= per_patient["max"].mean() <= 0.5
    assert set(truth["kind"]) == {"mass", "calcification"}


def test_files_are_named_as_in_the_release_and_match_the_table(release, table):
    for row in table.itertuples():
        (path,) = (release / "AllDICOMs").glob(f"{row._6}_*")
        number, token, modality, side, view, end = path.stem.split("_")
        assert (len(number), len(token), modality, end) == (8, 16, "MG", "ANON")
        assert side == row.Laterality
        assert view == {"MLO": "ML"}.get(row.View, row.View)


def test_headers_say_nothing_about_the_patient(release):
    bits = set()
    for path in (release / "AllDICOMs").iterdir():
        dataset = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "StudyDate", "AcquisitionDate", "ViewPosition"):
            assert keyword not in dataset
        assert path.stem.split("_")[1].encode() not in path.read_bytes()
        pixels = dataset.pixel_array
        assert pixels.dtype == np.uint16
        assert 2 ** (dataset.BitsStored - 2) < pixels.max() < 2**dataset.BitsStored
        bits.add(dataset.BitsStored)
    assert bits == {12, 14}


def test_annotations_have_the_quirks_of_the_release(release, table, regions):
    numbers = set(table["File Name"])
    assert set(regions) < numbers  # some images have none
    names = {region["Name"] for rois in regions.values() for region in rois}
    assert names == {"Mass", "Cluster", "Calcification", "Pectoral Muscle"}
    sizes = {len(region["Point_px"]) for rois in regions.values() for region in rois}
    assert {1, 2} < sizes
    outside = 0
    for number, rois in regions.items():
        (path,) = (release / "AllDICOMs").glob(f"{number}_*")
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        for region in rois:
            points = _points(region)
            assert region["NumberOfPoints"] == len(points) == len(region["Point_mm"])
            limit = (dataset.Columns, dataset.Rows)
            beyond = ((points < 0) | (points >= limit)).any()
            outside += beyond and region["Name"] != "Pectoral Muscle"
    assert 0 < outside < len(regions) / 4


def test_every_annotated_image_has_its_lesion_where_the_truth_says(release, regions):
    truth = pd.read_csv(release.parent / TRUTH)
    annotated = truth[truth["file_name"].str.split("_").str[0].isin(list(regions))]
    # As often for benign as for malignant patients, else an annotation would be a diagnosis.
    rates = truth["file_name"].isin(annotated["file_name"]).groupby(truth["malignant"]).mean()
    assert (rates > 0.85).all()
    for row in annotated.itertuples():
        (lesion,) = [
            region
            for region in regions[row.file_name.split("_")[0]]
            if region["Name"] in ("Mass", "Cluster")
        ]
        points = _points(lesion)
        np.testing.assert_allclose(
            (*points.min(axis=0), *points.max(axis=0)), (row.x0, row.y0, row.x1, row.y1), atol=0.01
        )


def test_a_compressed_release_holds_the_same_pixels(release, tmp_path):
    arguments = {**ARGUMENTS, "patients": 10}
    compressed = write_inbreast(tmp_path / "phantom", workers=1, syntax="jpegls", **arguments)
    for path in sorted((compressed / "AllDICOMs").iterdir())[:2]:
        expected = pydicom.dcmread(release / "AllDICOMs" / path.name).pixel_array
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, expected)


def test_a_finished_release_is_kept(release):
    before = (release / "INbreast.csv").stat()
    assert write_inbreast(release.parent, workers=1, **ARGUMENTS) == release
    assert (release / "INbreast.csv").stat() == before


def test_two_writers_at_once_make_one_release(tmp_path):
    arguments = {**ARGUMENTS, "patients": 10, "workers": 1}
    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(write_inbreast, tmp_path / "phantom", **arguments) for _ in range(2)
        ]
        releases = {future.result() for future in futures}
    assert releases == {tmp_path / "phantom" / RELEASE}
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


def test_another_release_is_not_overwritten(release):
    with pytest.raises(UserError, match="holds something else"):
        write_inbreast(release.parent, **{**ARGUMENTS, "seed": 6})
    assert json.loads((release.parent / "phantom.json").read_text())["seed"] == ARGUMENTS["seed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 9}, "patients=9"),
        ({"patients": 10**7}, "patients=10000000"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": -2}, "workers=-2"),
        ({"difficulty": "medium"}, "difficulty='medium'"),
        ({"syntax": "zip"}, "syntax='zip'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_inbreast(tmp_path / "phantom", **{**ARGUMENTS, **change})
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail_late(patient: int, **arguments):
        if patient == 2:
            raise OSError(28, "No space left on device")
        return original(patient, **arguments)

    original = inbreast_layout.render_patient
    monkeypatch.setattr(inbreast_layout, "render_patient", fail_late)
    with pytest.raises(UserError, match="No space left on device"):
        write_inbreast(tmp_path / "phantom", workers=1, **ARGUMENTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_release_never_looks_complete(tmp_path, kill):
    code = (
        "from pathlib import Path\n"
        "from sgc_experiments.data.phantom.inbreast_layout import write_inbreast\n"
        f"write_inbreast(Path({str(tmp_path / 'phantom')!r}), patients=5000, seed=0, "
        "difficulty='standard', workers=1, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f".phantom-*/{RELEASE}/AllDICOMs/*.dcm")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, kill)
    assert process.wait(timeout=60) != 0
    assert not (tmp_path / "phantom").exists()
    if kill == signal.SIGINT:
        assert not list(tmp_path.iterdir())
