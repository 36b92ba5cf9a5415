"""What surrounds a run fails: server, disk, files, clock. Nothing is lost, and the user is told."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from sgc_experiments.data import load_dataset, show_stages
from sgc_experiments.data.phantom.inbreast_layout import write_inbreast
from sgc_experiments.data.rejection import Reason
from sgc_experiments.errors import UserError
from tests.conftest import SMALL
from tests.test_kill_and_resume import metrics_of
from tests.tracking_server import TrackingServer

TRAIN = ["train", "--checkpoint_every", "5", *(p for k, v in SMALL.items() for p in (f"--{k}", v))]


@pytest.fixture
def server(workspace):
    server = TrackingServer(workspace)
    server.up()
    yield server
    server.down()


def start(workspace, arguments, *, before=(), **variables):
    return subprocess.Popen(
        [*before, sys.executable, "-m", "sgc_experiments", *arguments],
        cwd=workspace.folder,
        env=workspace.environment() | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process, workspace):
    while process.poll() is None:
        if list(workspace.cache.glob("runs/*/*/checkpoint-00000001*")):
            return
        time.sleep(0.02)
    raise AssertionError(process.stderr.read())


def check_all_is_there_once(workspace, finished):
    """The run has the numbers of one whose server was always there, and each of them once."""
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert metrics_of(run) == metrics_of(finished.runs()[0])
    history = workspace.client.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in history] == list(range(10, 61, 10))
    assert len(workspace.client.search_model_versions()) == 1


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_server_that_comes_back_has_lost_nothing_and_doubled_nothing(
    server, workspace, finished, seconds, figures_of_campaign
):
    process = start(workspace, TRAIN, MLFLOW_TRACKING_URI=server.uri)
    wait_for_checkpoint(process, workspace)
    server.down()
    time.sleep(seconds)
    server.up()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    check_all_is_there_once(workspace, finished)
    if seconds == 60:
        figures_of_campaign("outage: server away for 60 s, 60 steps: nothing lost, nothing doubled")


def test_when_the_server_stays_away_the_same_command_sends_what_is_missing(
    server, workspace, finished
):
    impatient = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    process = start(workspace, TRAIN, **impatient)
    wait_for_checkpoint(process, workspace)
    server.down()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert f"{server.uri} does not answer" in last
    assert "same command" in last

    server.up()
    process = start(workspace, TRAIN, **impatient)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "Going on in run" in errors
    check_all_is_there_once(workspace, finished)


def test_a_server_that_is_not_there_is_one_sentence(workspace):
    done = workspace.module(
        *TRAIN, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    assert done.returncode == 2
    assert "http://127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def small_disk(folder, size):
    """A command line prefix: run what follows with a disk of this size at `folder`."""
    script = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting needs root or user namespaces")
    return prefix


# In a mount namespace of its own, so that the disk is gone with the process: what is on it is told
# by the process itself.
FULL_DISK = """
import errno, os, sys
from pathlib import Path
import torch
from sgc_experiments.checkpoint import load_checkpoint, save_checkpoint
from sgc_experiments.errors import Outage
folder = Path(sys.argv[1])
save_checkpoint(folder, 1, {"weights": torch.ones(100_000)}, {"step": 1})
try:
    save_checkpoint(folder, 2, {"weights": torch.ones(300_000)}, {"step": 2})
except Outage as error:
    print(error)
tensors, state = load_checkpoint(folder)
print(state["step"], float(tensors["weights"].sum()), len(os.listdir(folder)))
"""


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_is_whole(tmp_path):
    done = subprocess.run(
        [*small_disk(tmp_path, "1m"), sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    sentence, state = done.stdout.splitlines()
    assert "step 2" in sentence
    assert "No space left on device" in sentence
    assert "free some space" in sentence
    assert state == "1 100000.0 1"


@pytest.mark.parametrize("what", ["cache", "store"])
def test_a_run_on_a_full_disk_ends_with_one_sentence(workspace, what):
    """The cache folder, or the folder of the MLflow store, is on a disk that is much too small."""
    disk = workspace.folder / what
    disk.mkdir()
    variables = {
        "cache": {"SGC_CACHE_DIR": str(disk)},
        "store": {"MLFLOW_TRACKING_URI": f"sqlite:///{disk}/mlflow.db"},
    }[what]
    process = start(workspace, TRAIN, before=small_disk(disk, "500k"), **variables)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert "free some space" in last or "has room" in last


def test_a_read_only_cache_folder_is_one_sentence(workspace):
    disk = workspace.folder / "readonly"
    disk.mkdir()
    prefix = small_disk(disk, "1m,ro")
    process = start(workspace, TRAIN, before=prefix, SGC_CACHE_DIR=str(disk))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "Read-only file system" in errors
    assert "cache_dir" in errors


def test_two_runs_at_once_on_one_store_both_finish(workspace):
    """Two seeds, and two equal commands, at the same time, on a cache that is still empty."""
    fast = [*TRAIN, "--model", "logistic_regression", "--phantom_seed", "5"]
    commands = [fast, fast, [*fast, "--seed", "1"]]
    processes = [start(workspace, arguments) for arguments in commands]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    runs = workspace.runs()
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert len(workspace.client.search_model_versions()) == 3


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "out"
    return write_inbreast(
        folder, patients=20, seed=2, difficulty="standard", workers=1, progress=False
    )


def load(release, cache_dir):
    return load_dataset(
        "inbreast",
        data_dir=release,
        cache_dir=cache_dir,
        input="whole",
        image_size=32,
        workers=1,
        progress=False,
    )


def test_a_file_that_vanishes_is_left_out_of_the_pictures_and_missed_by_the_next_run(
    release, tmp_path
):
    folder = tmp_path / "release"
    shutil.copytree(release, folder)
    whole = load(folder, tmp_path / "cache")
    # After the index was read, before the picture of its stages is made.
    os.unlink(whole.table["path"].iloc[0])
    first, second = show_stages(whole, whole.table.iloc[:2])
    assert first is None
    assert second["prepared"].shape == (32, 32)
    # Before the release is read again, whose table tells of a file that is not there.
    with pytest.raises(UserError, match="no such image file in 1 row"):
        load(folder, tmp_path / "cache")


VANISH = """
import sys
from pathlib import Path
from sgc_experiments.data import cache, decode_pool
from sgc_experiments.data.inbreast import read_table
from sgc_experiments.data.preprocess import PreprocessSettings
root, cache_dir = Path(sys.argv[1]), Path(sys.argv[2])
table = read_table(root)
Path(table["path"].iloc[-1]).unlink()
settings = PreprocessSettings(input="whole", image_size=32)
done = cache.open_cache(table, settings, root=root, cache_dir=cache_dir, workers=1, progress=False)
print(len(table), len(done.images), *done.rejected.values(), sep=";")
"""


def test_a_file_that_vanishes_after_indexing_is_quarantined(release, tmp_path):
    folder = tmp_path / "release"
    shutil.copytree(release, folder)
    done = subprocess.run(
        [sys.executable, "-c", VANISH, str(folder), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    indexed, read, *reasons = done.stdout.strip().split(";")
    assert int(read) == int(indexed) - len(reasons)
    assert str(Reason.UNREADABLE) in reasons


def test_one_bit_of_the_cache_is_noticed(release, tmp_path, caplog):
    before = np.array(load(release, tmp_path).images)
    (images,) = tmp_path.glob("images/*/images.npy")
    content = bytearray(images.read_bytes())
    content[len(content) // 2] ^= 1
    images.write_bytes(content)
    after = load(release, tmp_path).images
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(after, before)
