"""A cache is whole, right and shared, or it is made anew."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sgc_experiments.data import cache
from sgc_experiments.data.cache import CachedImages, open_cache
from sgc_experiments.data.decode_pool import run_isolated
from sgc_experiments.data.inbreast import read_table
from sgc_experiments.data.prepare import PrepareTask, prepare_file
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.rejection import Reason, RejectedFile
from sgc_experiments.errors import UserError
from tests.data.dicom_files import breast, dicom_bytes
from tests.data.inbreast_release import images, write_release

SETTINGS = PreprocessSettings(input="whole", image_size=32)

# What another process does in these tests: open the cache of a release, print its digest.
OPEN = """
import hashlib, logging, sys
from pathlib import Path
from tests.data.test_cache import opened
logging.basicConfig(level=logging.INFO)
cached = opened(Path(sys.argv[1]), Path(sys.argv[2]))
print(hashlib.sha256(cached.images.tobytes()).hexdigest(), len(cached.images))
"""


def opened(release: Path, cache_dir: Path, settings=SETTINGS, workers: int = 1) -> CachedImages:
    table = read_table(release)
    return open_cache(
        table, settings, root=release, cache_dir=cache_dir, workers=workers, progress=False
    )


def other_process(release: Path, cache_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(release), str(cache_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def folders(cache_dir: Path) -> list[Path]:
    return [path for path in (cache_dir / "images").iterdir() if path.is_dir()]


@pytest.fixture
def release(tmp_path) -> Path:
    """Nine images, of which the 1st, the 4th and the last cannot be used."""
    content = images(9)
    blank = dicom_bytes(np.full((96, 64), 5, np.uint16))
    content[0] = replace(content[0], data=b"no image")
    content[3] = replace(content[3], data=blank)
    content[8] = replace(content[8], data=dicom_bytes(breast(), Rows=9000))
    return write_release(tmp_path / "release", content)


@pytest.mark.parametrize("workers", [1, 3])
def test_images_are_what_each_file_gives_and_rejections_are_told(release, tmp_path, workers):
    cached = opened(release, tmp_path, workers=workers)
    table = read_table(release)
    usable = table[table["image_id"].isin(cached.sources)]
    assert cached.images.shape == (6, 32, 32)
    assert isinstance(cached.images, np.memmap)
    assert not cached.images.flags.writeable
    for row, (path, lesions) in enumerate(usable[["path", "lesions"]].itertuples(index=False)):
        alone = prepare_file(PrepareTask(path, lesions[0], SETTINGS))
        np.testing.assert_array_equal(cached.images[row], alone.pixels)
        np.testing.assert_array_equal(cached.boxes[row], alone.box)
        assert cached.sources[usable["image_id"].iloc[row]] == alone.sha256
    assert sorted(cached.rejected.values()) == sorted(
        [Reason.NOT_AN_IMAGE, Reason.BLANK, Reason.IMAGE_SIZE]
    )
    assert set(cached.rejected) | set(cached.sources) == set(table["image_id"])


def test_a_warm_cache_is_not_made_again(release, tmp_path):
    opened(release, tmp_path)
    (folder,) = folders(tmp_path)
    made = (folder / "cache.json").stat().st_mtime_ns
    began = time.monotonic()
    opened(release, tmp_path)
    assert time.monotonic() - began < 2
    assert (folder / "cache.json").stat().st_mtime_ns == made


def test_another_file_or_setting_makes_another_cache(release, tmp_path):
    first = opened(release, tmp_path).images
    changed = next((release / "AllDICOMs").glob("22000010*"))
    changed.write_bytes(dicom_bytes(breast(seed=99), WindowCenter=2048, WindowWidth=4096))
    second = opened(release, tmp_path).images
    assert (first != second).any(axis=(1, 2)).sum() == 1
    assert len(folders(tmp_path)) == 2
    wider = opened(release, tmp_path, replace(SETTINGS, margin=0.2)).images
    assert (wider != second).any()


def test_nothing_that_names_a_patient_is_stored(release, tmp_path):
    opened(release, tmp_path)
    (folder,) = folders(tmp_path)
    kept = (folder / "cache.json").read_text() + str(sorted(folder.iterdir()))
    assert sorted(path.name for path in folder.iterdir()) == [
        "boxes.npy",
        "cache.json",
        "images.npy",
    ]
    for number in range(9):
        assert f"{22_000_000 + 10 * number}" not in kept
    assert str(release) not in kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_byte(folder / "images.npy"),
        lambda folder: (folder / "boxes.npy").unlink(),
        lambda folder: (folder / "cache.json").write_text("[]"),
    ],
)
def test_a_damaged_cache_is_noticed_and_rebuilt(release, tmp_path, caplog, damage):
    whole = opened(release, tmp_path)
    images_before, boxes_before = whole.images.copy(), whole.boxes
    (folder,) = folders(tmp_path)
    damage(folder)
    mended = opened(release, tmp_path)
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(mended.images, images_before)
    np.testing.assert_array_equal(mended.boxes, boxes_before)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_two_processes_fill_one_cache_once(release, tmp_path):
    opened(release, tmp_path / "elsewhere")
    (name,) = (folder.name for folder in folders(tmp_path / "elsewhere"))
    lock = tmp_path / "images" / f"{name}.lock"
    lock.parent.mkdir()
    with lock.open("a") as held:  # until both wait, so that they are sure to meet
        fcntl.flock(held, fcntl.LOCK_EX)
        both = [other_process(release, tmp_path) for _ in range(2)]
        assert all("waiting for it" in process.stderr.readline() for process in both)
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][0].split()[1] == "6"
    assert len(folders(tmp_path)) == 1


def test_a_kill_in_the_middle_leaves_nothing_half_and_what_is_done_is_kept(tmp_path):
    slow = dicom_bytes(breast(700, 500), "j2k", WindowCenter=2048, WindowWidth=4096)
    content = [replace(image, data=slow) for image in images(18)]
    release = write_release(tmp_path / "release", content)
    no_image = next((release / "AllDICOMs").glob("22000000*"))
    no_image.write_bytes(b"no image")
    process = other_process(release, tmp_path)
    journal = wait_for_journal(tmp_path, lines=4)
    children = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=30)

    (partial,) = folders(tmp_path)
    assert partial.suffix == ".partial"
    done = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    assert 4 <= len(done) < 18
    with journal.open("a") as file:
        file.write('{"row": 17, "sha')  # killed while writing a line
    lost = next(entry["row"] for entry in done if "sha" in entry)
    with (partial / "images.npy").open("r+b") as file:
        file.seek(128 + lost * 2048)
        file.write(b"lost in a power cut")

    _, errors = other_process(release, tmp_path).communicate(timeout=120)
    kept = sum("sha" in entry for entry in done) - 1
    assert f"Continuing an interrupted preparation: {kept} images are done" in errors
    cached = opened(release, tmp_path)
    good = str(no_image.with_name(f"{content[1].stem}.dcm"))
    expected = prepare_file(PrepareTask(good, None, SETTINGS))
    assert len(cached.images) == 17
    for image in cached.images:
        np.testing.assert_array_equal(image, expected.pixels)
    assert not partial.exists()


def wait_for_journal(cache_dir: Path, lines: int) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for journal in cache_dir.glob("images/*.partial/journal"):
            if journal.read_text().count("}\n") >= lines:
                return journal
        time.sleep(0.02)
    raise AssertionError("nothing was prepared")


@pytest.fixture
def away(monkeypatch):
    """Images whose files cannot be read for the time being, and those that are asked for."""
    gone: set[str] = set()
    tried: list[str] = []

    def prepare(task, items, **options):
        numbers = [Path(item.path).name[:8] for item in items]
        tried.extend(numbers)
        for position, result in run_isolated(task, items, **options):
            lost = numbers[position] in gone
            yield position, RejectedFile(Reason.UNREADABLE) if lost else result

    monkeypatch.setattr(cache, "run_isolated", prepare)
    return gone, tried


def test_what_failed_in_passing_is_tried_again_and_nothing_else(release, tmp_path, away, caplog):
    gone, tried = away
    expected = opened(release, tmp_path / "elsewhere")
    gone |= {"22000010", "22000070"}
    poorer = opened(release, tmp_path)
    assert list(poorer.rejected.values()).count(Reason.UNREADABLE) == 2
    (folder,) = folders(tmp_path)
    made = (folder / "cache.json").stat().st_mtime_ns
    assert opened(release, tmp_path).rejected == poorer.rejected
    assert (folder / "cache.json").stat().st_mtime_ns == made
    assert folders(tmp_path) == [folder]

    gone.remove("22000010")
    tried.clear()
    partly = opened(release, tmp_path)
    assert sorted(tried) == ["22000010", "22000070"]
    assert len(partly.images) == 5
    gone.clear()
    whole = opened(release, tmp_path)
    np.testing.assert_array_equal(whole.images, expected.images)
    np.testing.assert_array_equal(whole.boxes, expected.boxes)
    assert (whole.sources, whole.rejected) == (expected.sources, expected.rejected)
    assert len(poorer.images) == 4  # still mapped by whoever opened it before
    assert "damaged" not in caplog.text
    assert folders(tmp_path) == [folder]


def test_an_unwritable_cache_folder_is_told(release, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder should be")
    with pytest.raises(UserError, match="cache_dir"):
        opened(release, blocked)
