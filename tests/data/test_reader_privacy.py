"""Nothing that identifies a patient leaves the CBIS-DDSM and VinDr-Mammo releases.

Markers stand in every header field and every column of the tables. They, and the identifiers that
the releases are built of, must not be in any log record, message, table column or cache file.
"""

import logging
import warnings

import pytest

from sgc_experiments.data import READERS, load_dataset
from sgc_experiments.data.phantom.cbis_ddsm_layout import write_cbis_ddsm
from sgc_experiments.data.phantom.vindr_mammo_layout import write_vindr_mammo
from sgc_experiments.data.rejection import Reason
from sgc_experiments.errors import UserError
from tests.planted_markers import (
    LEAK,
    MARKER,
    columns_of,
    plant_in_headers,
    plant_in_table,
    plant_in_unused_columns,
)

WRITERS = {"cbis_ddsm": write_cbis_ddsm, "vindr_mammo": write_vindr_mammo}
TABLES = {
    "cbis_ddsm": ["mass_case_description_train_set.csv"],
    "vindr_mammo": ["breast-level_annotations.csv", "finding_annotations.csv", "metadata.csv"],
}


@pytest.fixture(scope="module", params=WRITERS)
def dataset_name(request):
    return request.param


@pytest.fixture(scope="module")
def release(dataset_name, tmp_path_factory):
    """A release with markers wherever it can still be read, and one file that cannot."""
    root = tmp_path_factory.mktemp(dataset_name) / "release"
    WRITERS[dataset_name](root, patients=5, seed=0, workers=1)
    images = sorted([*root.rglob("*.dcm"), *root.rglob("*.dicom")])
    plant_in_headers(images)
    mammogram = max(images, key=lambda path: (path.stat().st_size, path))
    mammogram.write_bytes(mammogram.read_bytes()[:-1000])
    for name in TABLES[dataset_name]:
        plant_in_unused_columns(root / name)
    return root


def test_nothing_identifying_leaves_a_release_that_is_loaded(
    dataset_name, release, tmp_path, caplog, capfd
):
    cache = tmp_path / "cache"
    options = {"cache_dir": cache, "workers": 1} if dataset_name == "cbis_ddsm" else {}
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        dataset = load_dataset(
            dataset_name,
            data_dir=release,
            cache_dir=cache,
            input="whole",
            image_size=32,
            workers=1,
            reader_options=options,
        )
    assert (dataset.quarantine["reason"] != Reason.LEAK).sum() == 1
    told = {
        "log": caplog.text,
        "output": "".join(capfd.readouterr()),
        "warnings": str([str(warning.message) for warning in warned]),
        "table": dataset.table.drop(columns="path").to_csv(),
        "quarantine": dataset.quarantine.to_csv(),
        "preprocessing": str(dataset.preprocessing),
    }
    for path in cache.rglob("*"):
        told[path.name] = path.name
        if path.is_file():
            told[path.name] += path.read_bytes().decode("latin-1")
    assert len(told) > 8
    assert {where: LEAK.search(text)[0] for where, text in told.items() if LEAK.search(text)} == {}


def refusal(dataset_name, release):
    """What the reader says against a release, if anything."""
    options = {"cache_dir": release.parent, "workers": 1} if dataset_name == "cbis_ddsm" else {}
    try:
        READERS[dataset_name](release, **options)
    except UserError as error:
        return error
    return None


def test_no_message_quotes_a_table(dataset_name, release, caplog):
    refusals = []
    for name in TABLES[dataset_name]:
        path = release / name
        original = path.read_bytes()
        for column in range(len(columns_of(path))):
            plant_in_table(path, column, row=1)
            refusals.append(refusal(dataset_name, release))
            path.write_bytes(original)
    refusals = [error for error in refusals if error]
    assert len(refusals) >= 5
    for error in refusals:
        assert not LEAK.search(str(error))
        assert error.__context__ is None or error.__suppress_context__
    assert not LEAK.search(caplog.text)


def test_a_table_that_is_no_table_is_refused_without_quoting_it(dataset_name, release):
    path = release / TABLES[dataset_name][0]
    original = path.read_bytes()
    try:
        for content in (b"", f'a,b\n"{MARKER}'.encode(), f"a,b\n{MARKER},2,3,4\n".encode(), b"\0"):
            path.write_bytes(content)
            message = str(refusal(dataset_name, release))
            assert path.name in message
            assert not LEAK.search(message)
    finally:
        path.write_bytes(original)
