"""The low-data ablation as its users run it: killed, gone on with, reported, and registered."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest

from sgc_experiments import figures
from sgc_experiments.command_line import parse
from sgc_experiments.config import FewshotConfig, resolve_defaults
from sgc_experiments.errors import Outage, UserError
from sgc_experiments.experiments import fewshot_ablation, train
from sgc_experiments.experiments.ablation_cell import CellJob, run_cell
from sgc_experiments.experiments.ablation_grid import _past_failures, plan_cells
from sgc_experiments.experiments.datasets import load_images
from sgc_experiments.low_data_registry import (
    CellVersion,
    alias_of,
    curve_from_registry,
    low_data_versions,
    publish_cells,
)
from sgc_experiments.past_runs import PastRun
from sgc_experiments.provenance import commit
from sgc_experiments.tracking import Store, start_run
from tests.conftest import SMALL
from tests.data.test_splits import image_table
from tests.mlflow_ui import browser_on

# inception_v3 takes no images of 32 pixels: a model whose cells fail, for a real reason.
MODELS = ("logistic_regression", "majority", "inception_v3")
WORKING = MODELS[:2]
GRID = SMALL | {
    "preset": "quick",
    "models": ",".join(MODELS),
    "sizes": "0.5,all",
    "seeds": "0,1",
    "budget": "steps:3",
    "validate_every": "3",
}
N_CELLS = 2 * 2 * len(WORKING)


def _arguments(**changes):
    return [part for k, v in (GRID | changes).items() for part in (f"--{k}", v)]


def _cells(workspace, status=None):
    runs = [r for r in workspace.runs() if r.data.tags.get("entry_point") == "cell"]
    return [r for r in runs if status in (None, r.info.status)]


def _parents(workspace):
    return [r for r in workspace.runs() if r.data.tags.get("entry_point") == "fewshot_ablation"]


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_workspace):
    """A workspace whose study was killed half way, and finished by the same command.

    Its folder also holds `finished_before_the_kill.txt`, the runs that were finished by then.
    """
    workspace = make_workspace(tmp_path_factory.mktemp("fewshot"))
    command = [sys.executable, "-m", "sgc_experiments", "fewshot_ablation", *_arguments()]
    process = subprocess.Popen(
        command, cwd=workspace.folder, env=workspace.environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(_cells(workspace, "FINISHED")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = _cells(workspace, "FINISHED")
    assert len(finished) < N_CELLS
    starts = "\n".join(f"{r.info.run_id} {r.info.start_time} {r.info.end_time}" for r in finished)
    (workspace.folder / "finished_before_the_kill.txt").write_text(starts)
    done = workspace.module("fewshot_ablation", *_arguments())
    assert done.returncode == 0, done.stderr
    assert "to go" in done.stderr
    return workspace


@pytest.fixture
def store(study, monkeypatch):
    """The study's store, as that of this process."""
    return _enter(study, monkeypatch)


@pytest.fixture
def new_store(workspace, monkeypatch):
    return _enter(workspace, monkeypatch)


def _enter(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "SGC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SGC_CACHE_DIR", str(workspace.cache))
    mlflow.set_tracking_uri(workspace.tracking_uri)
    return workspace


def _artifact(run, name):
    return mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{name}")


def _csv(run, name):
    return pd.read_csv(io.StringIO(_artifact(run, f"{name}.csv")))


def test_no_cell_is_computed_twice_and_the_killed_run_goes_on(study):
    (parent,) = _parents(study)
    assert parent.info.status == "FINISHED"
    finished = _cells(study, "FINISHED")
    assert len(finished) == N_CELLS
    assert len({r.data.tags["cell_key"] for r in finished}) == N_CELLS
    assert {r.data.tags["mlflow.parentRunId"] for r in finished} == {parent.info.run_id}
    now = {f"{r.info.run_id} {r.info.start_time} {r.info.end_time}" for r in finished}
    before = (study.folder / "finished_before_the_kill.txt").read_text().splitlines()
    assert len(before) >= 2
    assert set(before) <= now
    # What was in flight when the parent was killed went on in its own run.
    assert {r.info.status for r in _cells(study)} == {"FINISHED", "FAILED"}
    assert len(_cells(study, "FAILED")) == 4


def test_what_another_machine_is_at_is_left_alone_and_what_it_has_finished_taken_over(
    new_store, tmp_path, monkeypatch
):
    """Machines share the server, not the cache."""
    one_cell = _arguments(models="majority", sizes="all", seeds="0")
    fewshot_ablation.main(one_cell)
    begun = [run.info.run_id for run in (*_parents(new_store), *_cells(new_store))]
    for run_id in begun:  # as of a process that has not come to its end, or never will
        new_store.client.update_run(run_id, status="RUNNING")
    before = [new_store.client.get_run(run_id).to_dictionary() for run_id in begun]
    there = tmp_path / "there"
    shutil.copytree(new_store.cache, there, ignore=shutil.ignore_patterns("runs", "locks"))
    monkeypatch.setenv("SGC_CACHE_DIR", str(there))
    fewshot_ablation.main(one_cell)
    assert [new_store.client.get_run(run_id).to_dictionary() for run_id in begun] == before
    (parent,) = (run for run in _parents(new_store) if run.info.run_id not in begun)
    (cell,) = (run for run in _cells(new_store) if run.info.run_id not in begun)
    assert cell.data.tags["mlflow.parentRunId"] == parent.info.run_id
    monkeypatch.setenv("SGC_CACHE_DIR", str(new_store.cache))
    fewshot_ablation.main(one_cell)
    assert len(new_store.runs()) == 4
    parent, lost = (new_store.client.get_run(run_id).info for run_id in begun)
    assert (parent.status, lost.status) == ("FINISHED", "KILLED")
    (row,) = _csv(new_store.client.get_run(parent.run_id), "cells").itertuples()
    assert row.run_id == cell.info.run_id


def test_subsets_are_nested_and_share_the_test_patients(store):
    by_seed = {}
    for run in _cells(store, "FINISHED"):
        if run.data.tags["model"] == "majority":
            split = _csv(run, "split")
            by_seed.setdefault(run.data.tags["seed"], {})[len(split)] = split
            labelled = split.loc[split["subset"] != "test", "patient"].nunique()
            assert labelled == int(run.data.tags["n_patients"])
    tests = set()
    for splits in by_seed.values():
        small, large = (splits[n] for n in sorted(splits))
        assert set(small["image_id"]) < set(large["image_id"])
        tests |= {tuple(s.loc[s["subset"] == "test", "image_id"]) for s in splits.values()}
    assert len(by_seed) == 2
    assert len(tests) == 1


def test_a_failed_cell_is_reported_and_stops_nothing(store):
    (parent,) = _parents(store)
    assert parent.data.tags["n_failed_cells"] == "4"
    cells = _csv(parent, "cells")
    failed = cells[cells["status"] == "failed"]
    assert set(failed["model"]) == {"inception_v3"}
    assert failed["reason"].str.contains("32 pixels").all()
    assert "4 cell(s) of the grid have no result" in parent.data.tags["mlflow.note.content"]


def test_the_same_command_fits_nothing_again_but_failed_cells_on_demand(store):
    before = {r.info.run_id for r in _cells(store)}
    fewshot_ablation.main(_arguments())
    assert {r.info.run_id for r in _cells(store)} == before
    newest = _parents(store)[0]
    assert _artifact(newest, "curves.csv") == _artifact(_parents(store)[-1], "curves.csv")
    fewshot_ablation.main(_arguments(retry_failed="true"))
    again = [r for r in _cells(store) if r.info.run_id not in before]
    assert [r.info.status for r in again] == ["FAILED"] * 4
    assert {r.data.tags["model"] for r in again} == {"inception_v3"}


def test_the_parent_holds_tables_figures_and_a_page(store):
    parent = _parents(store)[-1]
    curves = _csv(parent, "curves")
    assert set(curves["metric"]) == {"auc", "average_precision"}
    cells = _csv(parent, "cells").query("status == 'finished'")
    for row in curves[curves["metric"] == "auc"].itertuples():
        own = cells[(cells["model"] == row.model) & (cells["size"] == row.size)]
        assert row.value == pytest.approx(own["test_auc"].mean())
        assert row.low <= row.value <= row.high
        assert row.n_seeds == 2
    differences = _csv(parent, "differences")
    assert set(differences["model"]) == {"majority"}
    assert (differences["p_holm"] >= differences["p"]).all()
    assert set(_csv(parent, "label_efficiency")["reference"]) == {"logistic_regression"}
    assert set(_csv(parent, "smallest_sizes")["target"]) == {0.7, 0.8, 0.9}
    path = mlflow.artifacts.download_artifacts(f"runs:/{parent.info.run_id}/curves.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), curves, check_dtype=False)
    drawn = {f.path for f in store.client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/auc_by_size.png", "figures/differences.png"} <= drawn
    page = _artifact(parent, "fewshot_ablation.html")
    assert page.count("data:image/png;base64,") == len(drawn)
    assert "http" not in page
    assert "Highest mean AUC" in page


def test_every_cell_is_a_version_with_the_contracts_tags_and_the_best_has_its_alias(store):
    parent = _parents(store)[-1]
    for model in WORKING:
        name = f"{model}-phantom-lowdata"
        versions = store.client.search_model_versions(f"name='{name}'")
        assert len(versions) == 4
        for version in versions:
            run = store.client.get_run(version.tags["cell_run_id"])
            assert float(version.tags["test_auc"]) == run.data.metrics["test_auc"]
            for tag in ("test_auc_low", "test_auc_high", "val_auc"):
                assert float(version.tags[tag]) == run.data.metrics[tag]
            for tag in ("n_train_patients", "fraction", "seed", "split_digest"):
                assert version.tags[tag] == run.data.tags[tag]
            assert version.tags["ablation_run_id"] in {r.info.run_id for r in _parents(store)}
        for size in {v.tags["n_patients"] for v in versions}:
            best = store.client.get_model_version_by_alias(name, f"n{size}")
            rivals = [float(v.tags["val_auc"]) for v in versions if v.tags["n_patients"] == size]
            assert float(best.tags["val_auc"]) == max(rivals)
        registered = store.client.get_registered_model(name)
        for row in _csv(parent, "curves").query("model == @model").itertuples():
            assert f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" in registered.description
    loaded = mlflow.pyfunc.load_model(f"models:/logistic_regression-phantom-lowdata@n{size}")
    assert len(loaded.predict(loaded.input_example)) == 2


def test_the_curve_is_rebuilt_from_the_registry_alone(store, tmp_path):
    expected = _csv(_parents(store)[-1], "curves").query("metric == 'auc'")
    # Nothing but the versions is left: no run, no artifact.
    database = tmp_path / "registry.db"
    shutil.copyfile(store.folder / "mlflow.db", database)
    with sqlite3.connect(database) as connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"DELETE FROM {table}")
    uri = f"sqlite:///{database}"
    mlflow.set_tracking_uri(uri)
    curve = curve_from_registry("phantom")
    columns = ["model", "size", "value", "low", "high", "n_seeds"]
    pd.testing.assert_frame_equal(
        curve[columns].sort_values(columns[:2], ignore_index=True),
        expected[columns].sort_values(columns[:2], ignore_index=True),
        check_dtype=False,
        check_exact=True,
    )
    versions = low_data_versions("phantom")
    means = versions.groupby(["model", "n_patients"])["test_auc"].mean()
    for row in curve.itertuples():
        assert row.value == pytest.approx(means[row.model, row.size])
    labels = figures.learning_curves(curve).legends[0].get_texts()
    assert {text.get_text() for text in labels} >= set(WORKING)
    with pytest.raises(UserError, match="no curve of brier; there are: auc, average_precision"):
        curve_from_registry("phantom", metric="brier")
    with pytest.raises(UserError, match="no low-data results of inbreast"):
        curve_from_registry("inbreast")


def test_skew_is_an_axis_of_its_own(new_store):
    fewshot_ablation.main(
        _arguments(
            models="logistic_regression,majority", sizes="14,all", seeds="0", prevalence="0.3,0.5"
        )
    )
    (parent,) = _parents(new_store)
    curves = _csv(parent, "curves")
    assert set(curves["prevalence"]) == {0.3, 0.5}
    skew = _csv(parent, "skew")
    assert set(skew["prevalence"]) == {0.3, 0.5}
    assert set(skew["size"]) == {14}
    for run in _cells(new_store, "FINISHED"):
        split = _csv(run, "split").query("subset != 'test'").groupby("patient")["label"].max()
        wanted = float(run.data.tags["prevalence"]) * len(split)
        assert abs(split.sum() - wanted) <= 1
    drawn = {f.path for f in new_store.client.list_artifacts(parent.info.run_id, "figures")}
    assert "figures/auc_by_prevalence.png" in drawn
    name = "logistic_regression-phantom-lowdata"
    aliases = new_store.client.get_registered_model(name).aliases
    assert {"n14-p30", "n14-p50"} <= set(aliases)
    assert len(curve_from_registry("phantom", prevalence="0.3")) == 4


def test_skew_is_reported_without_a_reference_that_has_no_result(new_store):
    grid = {"models": "inception_v3,majority", "sizes": "14", "seeds": "0"}
    fewshot_ablation.main(_arguments(**grid, prevalence="0.3,0.5"))
    (parent,) = _parents(new_store)
    assert parent.info.status == "FINISHED"
    assert set(_csv(parent, "skew")["model"]) == {"majority"}
    logged = {file.path for file in new_store.client.list_artifacts(parent.info.run_id)}
    assert "skew_differences.csv" not in logged


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "2"], "sizes"),
        (["--sizes", "0.5,0.5"], "names something twice"),
        (["--n_patients", "50"], "sizes says it"),
        (["--folds", "5"], "seeds says it"),
        (["--reference", "vgg11"], "reference=vgg11 is none of models"),
        (["--pretrained", "true"], "add resnet18_pretrained"),
        (["--models", "sgc,sgc_transfer"], "init_from and the model sgc_transfer belong together"),
        (["--unlabelled", "rest"], "sgc_unlabelled among models says it"),
        (["--models", "a_pretrained,b_pretrained", "--weights", "x.pth"], "weights of one model"),
        (["--prevalence", "1.5"], "prevalence"),
        (["--preset", "quickly"], "preset=quickly"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_in_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        parse(FewshotConfig, arguments)


@pytest.mark.parametrize("in_the_way", ["runs", "locks"])
def test_a_cache_that_cannot_be_written_is_one_sentence(new_store, in_the_way):
    cache = new_store.folder / "cache"
    cache.mkdir()
    (cache / in_the_way).write_text("a file, not a folder")
    with pytest.raises(Outage, match=r"cannot be written \(.+\); .* set cache_dir"):
        fewshot_ablation.main(_arguments(cache_dir=str(cache)))


def test_a_tracking_server_that_is_away_is_one_sentence(new_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    with pytest.raises(Outage, match=r"http://127\.0\.0\.1:1 does not answer"):
        fewshot_ablation.main(_arguments())


def test_a_cell_that_met_a_full_disk_is_gone_on_with(new_store, monkeypatch):
    """It is no failure of the cell, which a later command would pass over."""
    # This process is at the store already, and would stay there after the test.
    monkeypatch.setattr(Store, "enter", lambda store: None)
    config = resolve_defaults(parse(FewshotConfig, _arguments(models="majority")), gpu=False)
    cell, *_ = plan_cells(config, load_images(config), gpu=False)
    with start_run("parent", {}) as run:
        job = CellJob(cell, Store.of(run), run.run_id, commit())

    def fit(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as full:
        full.setattr("sgc_experiments.experiments.ablation_cell._fit", fit)
        stopped = run_cell(job)
    assert "disk is full" in stopped.failure
    assert new_store.client.get_run(stopped.run_id).info.status == "KILLED"
    assert _past_failures(job.store, job.commit) == {}
    finished = run_cell(job)
    assert (finished.run_id, finished.failure) == (stopped.run_id, "")
    assert new_store.client.get_run(stopped.run_id).info.status == "FINISHED"


def test_a_size_that_the_patients_do_not_allow_fails_with_the_numbers(new_store):
    with pytest.raises(UserError, match="at most"):
        fewshot_ablation.main(_arguments(sizes="28", prevalence="0.9"))
    (parent,) = _parents(new_store)
    assert parent.info.status == "FAILED"


def test_weights_that_know_the_dataset_are_refused_before_the_first_cell(new_store):
    """Of any split, since a cell is to know no more than its own few patients."""
    known = {name: GRID[name] for name in ("phantom_patients", "image_size", "bootstrap")}
    train.main([part for k, v in (known | {"model": "majority"}).items() for part in (f"--{k}", v)])
    transfer = {"models": "sgc_transfer", "init_from": "models:/majority-phantom/1"}
    with pytest.raises(UserError, match=r"has seen \d+ patient\(s\) of phantom"):
        fewshot_ablation.main(_arguments(**transfer))
    assert not _cells(new_store)


def test_what_is_given_wins_over_the_preset():
    quick = parse(FewshotConfig, ["--preset", "quick"])
    assert (quick.sizes, quick.bootstrap, quick.image_size) == ((0.25, "all"), 500, "auto")
    assert quick.models == ("sgc", "sgc_plain", "resnet18")
    own = parse(FewshotConfig, ["--preset", "quick", "--sizes", "8,0.5", "--image_size", "48"])
    assert (own.sizes, own.bootstrap, own.image_size) == ((8, 0.5), 500, 48)
    assert parse(FewshotConfig, ["--dataset", "inbreast"]).image_size == "auto"


def test_variants_differ_from_their_model_by_what_their_name_says():
    config = parse(
        FewshotConfig,
        ["--models", "sgc,sgc_plain,resnet18,resnet18_pretrained", "--weights", "w.safetensors"],
    )
    hybrid, plain, resnet, pretrained = (
        config.of(m, n_patients=20, seed=3, prevalence=None) for m in config.models
    )
    assert (plain.model, plain.hybrid_weight) == ("sgc", 0.0)
    assert (hybrid.model, hybrid.hybrid_weight) == ("sgc", 0.01)
    assert (resnet.model, resnet.weights) == ("resnet18", None)
    assert (pretrained.model, pretrained.weights.name) == ("resnet18", "w.safetensors")
    assert {c.budget for c in (plain, hybrid, resnet, pretrained)} == {"steps:1000"}
    assert {(c.seed, c.subset_seed, c.n_patients) for c in (plain, resnet)} == {(3, 3, 20)}


def test_unlabelled_and_transferred_models_are_variants_and_nobody_is_unlabelled_at_full_size():
    config = parse(
        FewshotConfig,
        ["--models", "sgc,sgc_unlabelled,sgc_transfer", "--init_from", "models:/sgc-phantom/1"],
    )
    plain, unlabelled, transfer = (
        config.of(m, n_patients=20, seed=0, prevalence=None) for m in config.models
    )
    assert (plain.unlabelled, plain.init_from) == (None, "")
    assert (unlabelled.unlabelled, unlabelled.init_from) == ("rest", "")
    assert (transfer.unlabelled, transfer.init_from) == (None, "models:/sgc-phantom/1")
    table = image_table(40, 20)
    dataset = SimpleNamespace(table=table, digest="d", classes=("benign", "malignant"))
    cells = plan_cells(resolve_defaults(config, gpu=False), dataset, gpu=False)
    everyone = max(cell.n_patients for cell in cells)
    sizes = {m: {c.n_patients for c in cells if c.model == m} for m in config.models}
    assert sizes["sgc"] == sizes["sgc_transfer"] == sizes["sgc_unlabelled"] | {everyone}
    assert everyone not in sizes["sgc_unlabelled"]
    nothing = parse(FewshotConfig, ["--models", "sgc_unlabelled", "--sizes", "all"])
    with pytest.raises(UserError, match="The grid has no cell"):
        plan_cells(resolve_defaults(nothing, gpu=False), dataset, gpu=False)


@pytest.mark.parametrize(
    ("prevalence", "alias"),
    [("natural", "n50"), ("0.2", "n50-p20"), ("0.05", "n50-p5"), ("0.125", "n50-p12_5")],
)
def test_aliases_name_size_and_skew(prevalence, alias):
    assert alias_of("50", prevalence) == alias


def test_an_alias_marks_the_best_version_of_all_ablations_under_its_split(new_store):
    tags = dict.fromkeys(
        ("model", "dataset", "seed", "n_train_patients", "fraction", "split_digest", "data_digest"),
        "0",
    ) | {"n_patients": "20", "prevalence": "natural", "model_uri": f"file://{new_store.folder}"}
    marked = []
    for ablation, (split, results) in enumerate(
        [
            ("one", [None, 0.5]),
            ("one", [0.2]),  # the same command with another seed
            ("one", [0.5, 0.7]),
            ("other", [0.1]),
            ("one", [0.6]),
        ]
    ):
        cells = [
            CellVersion(
                PastRun(
                    f"{ablation}-{number}", "FINISHED", "cell", tags, {},
                    {} if result is None else {"val_auc": result},
                ),
                {},
            )
            for number, result in enumerate(results)
        ]  # fmt: skip
        publish_cells(
            "model", cells, ablation=str(ablation), split_digest=split, description="table"
        )
        best = new_store.client.get_model_version_by_alias("model", "n20")
        marked.append(best.tags.get("val_auc"))
    assert marked == ["0.5", "0.5", "0.7", "0.1", "0.7"]


def test_the_ui_shows_the_study_its_cells_and_the_registry(study):
    parent = _parents(study)[-1]
    with browser_on(study) as browser:
        browser.open("experiments/0/runs", parent.info.run_name)
        browser.open(
            f"experiments/0/runs/{parent.info.run_id}",
            *("research, not for diagnosis", "Show more"),
        )
        browser.click("Show more")
        browser.wait_for("Highest mean AUC")
        for figure in ("auc_by_size", "differences"):
            page = f"experiments/0/runs/{parent.info.run_id}/artifacts/figures/{figure}.png"
            browser.open(page, f"{figure}.png")
            assert min(browser.wait_for_picture()) > 300
        cell = _cells(study, "FINISHED")[0]
        browser.open(f"experiments/0/runs/{cell.info.run_id}", cell.info.run_name, "test_auc")
        browser.open(
            "models/logistic_regression-phantom-lowdata", "research, not for diagnosis", "n28"
        )
