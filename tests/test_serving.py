"""`mlflow models serve` on a real port: files, arrays, parameters, and bad requests."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sgc_experiments.serving_input import MOST_FILES


@pytest.fixture(scope="module")
def predictions(finished):
    """What the training run said of its test images."""
    version = finished.client.get_model_version_by_alias("sgc-phantom", "champion")
    path = mlflow.artifacts.download_artifacts(
        run_id=version.run_id, artifact_path="predictions.csv", tracking_uri=finished.tracking_uri
    )
    table = pd.read_csv(path)
    return table[table["subset"] == "test"].set_index("image_id")


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory):
    """The address of a running `mlflow models serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
    environment = {k: v for k, v in finished.environment().items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/sgc-phantom@champion",
            "--env-manager", "local", "-p", str(port), "-h", "127.0.0.1",
        ],
        cwd=finished.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5)
                break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def ask(server, body, content_type="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server}/invocations", data=data, headers={"Content-Type": content_type}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def record(row):
    box = dict(zip(("x0", "y0", "x1", "y1"), row.lesions[0], strict=True))
    return {"image": base64.b64encode(Path(row.path).read_bytes()).decode(), **box}


@pytest.fixture(scope="module")
def rows(phantom, predictions):
    table = phantom.table
    return list(table[table["image_id"].isin(predictions.index)].itertuples())


def test_dicom_files_are_prepared_as_in_training(server, rows, predictions):
    chosen = rows[:4]
    status, answer = ask(server, {"dataframe_records": [record(row) for row in chosen]})
    assert status == 200
    for row, given in zip(chosen, answer["predictions"], strict=True):
        expected = predictions.loc[row.image_id]
        assert given["probability_malignant"] == pytest.approx(expected["probability"], abs=1e-6)
        for name in ("log_odds", "standard_error"):
            assert given[name] == pytest.approx(expected[name], abs=1e-5)
        for name in ("abstain", "out_of_distribution"):
            assert given[name] == expected[name]


def test_prepared_arrays_and_png_files_are_answered(server, rows, phantom, predictions):
    row = rows[0]
    image = phantom.images[row.Index] / 65535
    _, answer = ask(server, {"inputs": [image.tolist()]})
    expected = predictions.loc[row.image_id, "probability"]
    assert answer["predictions"][0]["probability_malignant"] == pytest.approx(expected, abs=1e-6)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(phantom.images[row.Index])).save(buffer, "PNG")
    crop = base64.b64encode(buffer.getvalue()).decode()
    corners = {"x0": 0, "y0": 0, "x1": 32, "y1": 32}
    status, answer = ask(server, {"dataframe_records": [{"image": crop, **corners}]})
    assert status == 200
    assert 0 < answer["predictions"][0]["probability_malignant"] < 1


@pytest.mark.parametrize("form", ["inputs", "instances", "columns", "split"])
def test_mlflows_other_formats_are_understood(server, rows, form):
    one = record(rows[0])
    body = {
        "inputs": {"inputs": [one]},
        "instances": {"instances": [one]},
        "columns": {"inputs": {name: [value] for name, value in one.items()}},
        "split": {"dataframe_split": {"columns": list(one), "data": [list(one.values())]}},
    }[form]
    status, answer = ask(server, body)
    assert status == 200, answer
    assert len(answer["predictions"]) == 1


def test_params_choose_prevalence_evaluations_and_map(server, rows):
    body = {"dataframe_records": [record(rows[0])]}
    plain = ask(server, body)[1]["predictions"][0]
    rare = ask(server, body | {"params": {"prevalence": 0.001}})[1]["predictions"][0]
    assert rare["probability_malignant"] < plain["probability_malignant"] / 20
    params = {"evaluations": 256, "map": True}
    more = ask(server, body | {"params": params})[1]["predictions"][0]
    assert 0 < more["standard_error"] < plain["standard_error"] * 1.5
    assert more["log_odds"] != plain["log_odds"]
    picture = Image.open(io.BytesIO(base64.b64decode(more["map"])))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (32, 32), "RGB")
    assert "map" not in plain


def encoded(data):
    return base64.b64encode(data).decode()


WHOLE = {"x0": 1, "y0": 1, "x1": 30, "y1": 30}
BAD = {
    "no image": ({"dataframe_records": [{"image": encoded(b"hello" * 99), **WHOLE}]}, "neither a"),
    "empty": ({"dataframe_records": [{"image": "", **WHOLE}]}, "Image 1 is empty."),
    "corrupt base64": ({"dataframe_records": [{"image": "@@@", **WHOLE}]}, "is not base64"),
    "a number": ({"dataframe_records": [{"image": 7, **WHOLE}]}, "Image 1 is no text"),
    "no box": ({"dataframe_records": [{"image": encoded(b"x")}]}, "Image 1 has no box"),
    "half a box": ({"dataframe_records": [{"image": encoded(b"x"), "x0": 3}]}, "or none"),
    "a wrong box": ({"dataframe_records": [{"image": "eA==", **WHOLE, "x0": 99}]}, "is not 0"),
    "unknown column": ({"dataframe_records": [{"picture": "eA=="}]}, "has a column image"),
    "no row": ({"dataframe_records": []}, "has a column image"),
    "too many": ({"inputs": ["eA=="] * (MOST_FILES + 1)}, f"1 to {MOST_FILES} files, not"),
    "wrong shape": ({"inputs": np.zeros((2, 16, 16)).tolist()}, "shape (N, 32, 32)"),
    "wrong range": ({"inputs": np.full((1, 32, 32), 7).tolist()}, "values from 0"),
    "ragged": ({"inputs": [[[0.5] * 32] * 31, [[0.5] * 32] * 32]}, "Invalid input"),
    "a word": ({"inputs": "two words"}, "is not base64"),
    "wrong prevalence": (
        {"inputs": np.zeros((1, 32, 32)).tolist(), "params": {"prevalence": 3}}, "prevalence is",
    ),
    "wrong evaluations": (
        {"inputs": np.zeros((1, 32, 32)).tolist(), "params": {"evaluations": 10**6}},
        "2 to 4096",
    ),
    "too much work": (
        {"inputs": np.zeros((9, 32, 32)).tolist(), "params": {"evaluations": 4096}},
        "send fewer images",
    ),
    "nothing": ({}, "exactly one of the input fields"),
    "no JSON": (b"\xff\xfe", "valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_a_sentence(server, case):
    body, sentence = BAD[case]
    status, answer = ask(server, body)
    assert 400 <= status < 500
    assert sentence in answer
    assert "Traceback" not in answer


def test_a_broken_file_is_refused_and_nothing_of_it_is_echoed(server, rows):
    one = record(rows[0])
    whole = base64.b64decode(one["image"])
    for data, reason in (
        (whole[:-5000], "truncated"),
        (bytes(128) + b"DICM" + b"x", "transfer syntax"),
    ):
        status, answer = ask(server, {"dataframe_records": [one | {"image": encoded(data)}]})
        assert status == 400
        assert reason in answer
        assert encoded(data)[:40] not in answer


def test_an_oversized_file_is_refused_and_the_server_goes_on(server, rows):
    large = {"dataframe_records": [{"image": "A" * (200 << 20), **WHOLE}]}
    status, answer = ask(server, large)
    assert (status, "larger than" in answer) == (400, True)
    status, _ = ask(server, {"dataframe_records": [record(rows[0])]})
    assert status == 200


def test_an_unknown_content_type_is_refused(server):
    status, _ = ask(server, b"x", "image/png")
    assert status == 415
