"""20,000 images index and load with flat memory."""

import os
import subprocess
import sys

import pytest

from tests.data.dicom_files import breast, dicom_bytes
from tests.data.inbreast_release import HEADER, OUTLINE, Image, osirix

IMAGES = 20_000
_MARK = "--------"
# In a fresh process, whose peak is its own.
LOAD = """
import resource, sys
from pathlib import Path
from sgc_experiments.data import load_dataset

dataset = load_dataset(
    "inbreast", data_dir=Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), input="whole",
    image_size=128, progress=False,
)
total = sum(int(dataset.images[k : k + 256].sum()) for k in range(0, len(dataset.images), 256))
print(len(dataset.images), total > 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """One mammogram in 20,000 files that differ in a tag: patients may not share a file."""
    root = tmp_path_factory.mktemp("scale")
    (root / "AllDICOMs").mkdir()
    (root / "AllXML").mkdir()
    data = dicom_bytes(breast(), WindowCenter=2048, WindowWidth=4096, StudyID=_MARK)
    (root / "regions").write_bytes(osirix([("Mass", OUTLINE)]))
    rows = [HEADER]
    for k in range(IMAGES):
        grade = "5" if (k // 4) % 3 == 0 else "2"
        image = Image(10_000_000 + k, f"{k // 4:016x}", grade=grade)
        rows.append(image.cells)
        own = data.replace(_MARK.encode(), f"{k:08d}".encode())
        (root / "AllDICOMs" / f"{image.stem}.dcm").write_bytes(own)
        os.link(root / "regions", root / "AllXML" / f"{image.number}.xml")
    (root / "INbreast.csv").write_text("".join(";".join(row) + "\r\n" for row in rows))
    return root


@pytest.mark.slow
def test_twenty_thousand_images_load_within_one_and_a_half_gigabytes(release, tmp_path):
    for _ in ("cold", "warm"):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(release), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        count, lit, megabytes = done.stdout.split()
        assert (int(count), lit) == (IMAGES, "True")
        assert int(megabytes) < 1500
