"""Which files of a folder without a table are looked at."""

import logging

import pytest

from sgc_experiments.data.image_folder import find_images
from sgc_experiments.errors import UserError

EXPORTED = (
    "1.2.840.113619.2.66.2158408118.16050010109105933.20000",
    "MG.1.2.840.113619.2.66.1",
    "IM0001",
    "a.dcm",
    "b.IMA",
    "c.DICOM",
    "d.dcm30",
    "e.PNG",
)


def test_whatever_is_not_surely_something_else_may_be_an_image(tmp_path, caplog):
    (tmp_path / "SMITH").mkdir()
    for name in (*EXPORTED, "notes.txt", "table.CSV", "out.csv.partial", ".hidden"):
        (tmp_path / "SMITH" / name).write_bytes(b"x")
    (tmp_path / "f.dcm").symlink_to("/etc/passwd")
    (tmp_path / "g.dcm").symlink_to(tmp_path / "SMITH" / "a.dcm")
    with caplog.at_level(logging.INFO):
        found = find_images(tmp_path)
    assert found == sorted(["g.dcm", *(f"SMITH/{name}" for name in EXPORTED)])
    (told,) = caplog.messages
    assert told.startswith("images: 3 other file(s)")
    assert "1 link(s) that lead out of it" in told
    assert "SMITH" not in told


def test_a_folder_without_images_is_told_with_what_lies_in_it(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"x")
    with pytest.raises(UserError, match=r"unlabelled=.* holds no image \(1 other file"):
        find_images(tmp_path, "unlabelled")
