"""From a folder to images: the whole way, and every way in which it cannot be gone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sgc_experiments.data import READERS, ImageDataset, load_dataset
from sgc_experiments.data.splits import make_split
from sgc_experiments.errors import UserError
from tests.data.dicom_files import breast, dicom_bytes
from tests.data.inbreast_release import images, write_release


def load(release: Path, cache_dir: Path, input: str = "roi", **changes) -> ImageDataset:
    arguments = {"image_size": 32, "workers": 1, "progress": False} | changes
    return load_dataset("inbreast", data_dir=release, cache_dir=cache_dir, input=input, **arguments)


def test_rows_images_and_boxes_belong_together_and_the_rest_is_accounted_for(tmp_path):
    content = images(6, views=2)
    content[0] = replace(content[0], data=b"no image")
    content[1] = replace(content[1], regions=None)
    content[2] = replace(content[2], grade="3")
    content[4] = replace(content[4], regions=[("Mass", [(500, 1), (510, 9), (520, 4)])])
    release = write_release(tmp_path / "release", content)
    (release / "AllXML" / f"{content[6].number}.xml").write_bytes(b"no XML")

    dataset = load(release, tmp_path, reader_options={"birads3": "drop"})
    assert len(dataset.table) == len(dataset.images) == len(dataset.boxes) == 7
    assert dict(dataset.quarantine["reason"].value_counts()) == {
        "neither a DICOM, JPEG, PNG, TIFF nor NPY file": 1,
        "no lesion annotated": 1,
        "BI-RADS 3, left out on request": 1,
        "the lesion lies outside the image": 1,
        "the annotation cannot be read": 1,
    }
    assert not set(dataset.quarantine["image_id"]) & set(dataset.table["image_id"])
    assert dataset.images.dtype == np.uint16
    assert np.isfinite(dataset.boxes).all()
    assert dataset.classes == ("benign", "malignant")
    assert dataset.preprocessing["input"] == "roi"
    assert dataset.preprocessing["image_size"] == 32


def test_whole_images_need_no_lesion(tmp_path):
    content = [replace(image, regions=None) for image in images(2)]
    dataset = load(write_release(tmp_path / "release", content), tmp_path, "whole")
    assert len(dataset.images) == 2
    assert np.isnan(dataset.boxes).all()
    assert dataset.quarantine.empty
    assert list(dataset.quarantine.columns) == ["image_id", "reason"]


def test_a_file_under_two_patients_is_left_out_of_both_and_counted(tmp_path, caplog):
    content = images(6, views=2)
    for first, second in ((0, 3), (4, 5)):  # of two patients, and of one
        data = dicom_bytes(breast(seed=first), WindowCenter=2048, WindowWidth=4096)
        content[first] = replace(content[first], data=data)
        content[second] = replace(content[second], data=data)
    release = write_release(tmp_path / "release", content)
    dataset = load(release, tmp_path, "whole")
    reason = "the same file, byte for byte, under another patient"
    assert list(dataset.quarantine["reason"]) == [reason] * 2
    assert f"2 images left out ({reason})" in caplog.text
    assert len(dataset.table) == len(dataset.images) == len(dataset.boxes) == 10
    alone = load(write_release(tmp_path / "b", content[1:3]), tmp_path, "whole")
    rows = [list(dataset.table["image_id"]).index(name) for name in alone.table["image_id"]]
    np.testing.assert_array_equal(dataset.images[rows], alone.images)
    np.testing.assert_array_equal(dataset.boxes[rows], alone.boxes)


def test_the_digest_is_of_content_and_settings_not_of_places_and_times(tmp_path):
    here = load(write_release(tmp_path / "here", images(2)), tmp_path / "cache", "whole")
    there = load(write_release(tmp_path / "there", images(2)), tmp_path / "cache2", "whole")
    assert here.digest == there.digest
    relabelled = [replace(image, grade="2" if image.grade == "5" else "5") for image in images(2)]
    digests = {
        here.digest,
        load(write_release(tmp_path / "c", relabelled), tmp_path / "cache", "whole").digest,
        load(tmp_path / "here", tmp_path / "cache", "whole", clahe=True).digest,
        load(tmp_path / "here", tmp_path / "cache", "roi").digest,
    }
    assert len(digests) == 4


def test_the_phantom_is_made_on_first_use_and_read_like_any_release(tmp_path):
    arguments = {
        "data_dir": None,
        "cache_dir": tmp_path,
        "input": "roi",
        "image_size": 32,
        "workers": 1,
        "phantom": {"patients": 12, "seed": 0, "difficulty": "standard"},
        "progress": False,
    }
    dataset = load_dataset("phantom", **arguments)
    assert dataset.name == "phantom"
    assert dataset.table["patient"].nunique() >= 11
    assert set(dataset.quarantine["reason"]) == {"no lesion annotated"}
    assert set(dataset.table["label"]) == {0, 1}
    make_split(dataset.table, seed=0)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    again = load_dataset("phantom", **arguments)
    assert again.digest == dataset.digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")} == files


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([replace(image, grade="2") for image in images(2)], "only benign images"),
        ([replace(image, grade="6") for image in images(2)], "only malignant images"),
        (
            [replace(image, data=b"no image") for image in images(2)],
            r"no usable image, .* \(left out: 2 × neither a DICOM, JPEG, PNG, TIFF nor NPY file\)",
        ),
        (
            [replace(image, regions=None) for image in images(2)],
            r"no usable image, .* \(left out: 2 × no lesion annotated\)",
        ),
    ],
)
def test_one_class_or_no_image_is_told_with_what_was_left_out(tmp_path, content, told):
    with pytest.raises(UserError, match=told):
        load(write_release(tmp_path / "release", content), tmp_path)


def test_a_missing_folder_or_dataset_is_told(tmp_path):
    for folder in (tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(UserError, match=f"{folder}.*dataset=phantom, which needs nothing"):
            load(folder, tmp_path)
    with pytest.raises(UserError, match="choose one of phantom, inbreast"):
        load_dataset("ddsm", data_dir=None, cache_dir=tmp_path, input="roi", image_size=32)
    assert set(READERS) == {"phantom", "inbreast", "cbis_ddsm", "vindr_mammo", "table"}


def test_importing_the_package_is_cheap():
    script = "import sys, sgc_experiments.data; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    for heavy in ("numpy", "pandas", "pydicom", "cv2", "torch", "sklearn", "mlflow"):
        assert f"'{heavy}'" not in loaded
