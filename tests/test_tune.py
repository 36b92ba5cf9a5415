"""The search end to end: killed, gone on with, shared; the test patients are for the end."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from sgc_experiments.command_line import parse
from sgc_experiments.config import TrainConfig, TuneConfig, resolve_tuning
from sgc_experiments.errors import Outage, UserError
from sgc_experiments.experiments import train, tune, tune_trial
from sgc_experiments.experiments.datasets import load_data
from sgc_experiments.experiments.tune_study import TuningStudy
from sgc_experiments.experiments.tune_trial import end_lost_trial, run_trial
from sgc_experiments.tracking import start_run
from tests.conftest import HURRIED, ROOT, SMALL
from tests.mlflow_ui import browser_on

TINY = SMALL | {
    "channels": "8,16",
    "search": "channels=8-16|4-8,evaluations=8|16",
    "budget": "steps:12",
    "trial_budget": "steps:12",
    "validate_every": "4",
    "bootstrap": "100",
    "lost_after": "3",
    "workers": "1",
}


def start(workspace, **parameters):
    arguments = [part for k, v in (TINY | parameters).items() for part in (f"--{k}", v)]
    return subprocess.Popen(
        [sys.executable, "-m", "sgc_experiments", "tune", *arguments],
        cwd=workspace.folder, env=workspace.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def runs_of(workspace, entry_point):
    return [r for r in workspace.runs() if r.data.tags.get("entry_point") == entry_point]


def the_study(url):
    (name,) = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, make_workspace):
    """A workspace whose study was killed in its second trial, then gone on with to its end."""
    workspace = make_workspace(tmp_path_factory.mktemp("resumed"))
    process = start(workspace, trials="4", refit_seeds="2")
    deadline = time.monotonic() + 300
    while not [r for r in runs_of(workspace, "trial") if r.data.tags.get("trial") == "1"]:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = workspace.project("tune", **TINY, trials="4", refit_seeds="2")
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace


@pytest.fixture(scope="module")
def study_run(resumed):
    (run,) = runs_of(resumed, "tune")
    return run


@pytest.fixture(scope="module")
def artifacts(resumed, study_run, tmp_path_factory):
    return mlflow.artifacts.download_artifacts(
        run_id=study_run.info.run_id,
        dst_path=str(tmp_path_factory.mktemp("artifacts")),
        tracking_uri=resumed.tracking_uri,
    )


def test_the_same_command_goes_on_with_the_killed_study(resumed, study_run):
    trials = the_study(f"sqlite:///{resumed.folder / 'optuna.db'}").trials
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert [t.state for t in trials[:2]] == [TrialState.COMPLETE, TrialState.FAIL]
    assert len(finished) == 4
    (repeated,) = (t for t in trials if t.system_attrs.get("failed_trial") == 1)
    assert repeated.params.items() >= trials[1].params.items()
    assert study_run.info.status == "FINISHED"
    assert "failure_reason" not in study_run.data.tags
    assert runs_of(resumed, "worker") == []  # the killed command's run was the study's


def test_every_trial_is_a_nested_run_with_parameters_curves_and_state(resumed, study_run):
    trials = runs_of(resumed, "trial")
    assert len(trials) == 5
    for run in trials:
        assert run.data.tags["mlflow.parentRunId"] == study_run.info.run_id
        lost = run.data.tags["trial"] == "1"
        assert run.info.status == ("KILLED" if lost else "FINISHED")
        assert run.data.tags["trial_state"] in (["lost"] if lost else ["complete", "pruned"])
        assert "config.learning_rate" in run.data.params or lost
        if run.data.tags["trial_state"] == "complete":
            curve = resumed.client.get_metric_history(run.info.run_id, "validation_auc")
            assert [point.step for point in curve] == [4, 8, 12]
            assert run.data.metrics["val_bits_per_dim"] > 0


def test_no_trial_saw_a_test_image(resumed):
    for run in runs_of(resumed, "trial"):
        names = {i.dataset.name for i in run.inputs.dataset_inputs}
        assert names <= {"phantom-train", "phantom-validation"}
        assert not [name for name in run.data.metrics if name.startswith("test")]
        if "val_auc" in run.data.metrics:
            uri = f"runs:/{run.info.run_id}/predictions.csv"
            mlflow.set_tracking_uri(resumed.tracking_uri)
            predictions = mlflow.artifacts.load_text(uri)
            assert "test" not in predictions


def test_the_study_s_run_holds_figures_trials_and_the_best(artifacts, study_run):
    for name in ("history", "slice", "parallel", "pareto", "importance"):
        with open(f"{artifacts}/figures/{name}.png", "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    trials = pd.read_csv(f"{artifacts}/trials.csv")
    assert trials["state"].isin(["complete", "pruned"]).sum() == 4
    complete = trials[trials["state"] == "complete"]
    best = complete.loc[complete["val_auc"].idxmax()]
    assert study_run.data.metrics["best_trial"] == best["number"]
    defaults = complete.loc[complete["defaults"], "val_auc"]
    assert best["val_auc"] >= defaults.max()


def test_train_takes_the_best_parameters_as_its_config(artifacts, resumed):
    best = parse(TrainConfig, ["--config", f"{artifacts}/best_config.yaml"])
    (tuned,) = (
        r
        for r in runs_of(resumed, "refit")
        if r.data.tags["refit"] == "tuned" and r.data.params["config.seed"] == "0"
    )
    assert best.budget == "steps:12"
    for name in ("weighting", "learning_rate", "log_snr_min", "evaluations"):
        assert str(getattr(best, name)) == tuned.data.params[f"config.{name}"]


def test_the_best_is_refitted_with_several_seeds_registered_and_compared(resumed, study_run):
    refits = runs_of(resumed, "refit")
    roles = sorted((r.data.tags["refit"], r.data.params["config.seed"]) for r in refits)
    tuned = [("tuned", "0"), ("tuned", "1")]
    assert roles in (tuned, [("defaults", "0"), ("defaults", "1"), *tuned])
    versions = resumed.client.search_model_versions("name='sgc-phantom'")
    assert sorted(v.tags["seed"] for v in versions) == ["0", "1"]
    metrics = study_run.data.metrics
    mean = sum(r.data.metrics["test_auc"] for r in refits if r.data.tags["refit"] == "tuned") / 2
    assert metrics["tuned_test_auc"] == pytest.approx(mean)
    if len(roles) == 4:
        gain = metrics["tuned_test_auc"] - metrics["defaults_test_auc"]
        assert metrics["gain_test_auc"] == pytest.approx(gain)
        assert metrics["gain_test_auc_low"] <= gain <= metrics["gain_test_auc_high"]


def test_two_workers_on_one_postgresql_server_share_a_study(workspace, postgres_server):
    dsn = postgres_server.dsn(postgres_server.new_database())
    workers = [start(workspace, trials="4", refit_seeds="1", storage=dsn) for _ in range(2)]
    for worker in workers:
        output, _ = worker.communicate(timeout=600)
        assert worker.returncode == 0, output
    trials = the_study(dsn.replace("postgresql:", "postgresql+psycopg2:")).trials
    assert [t.number for t in trials] == [0, 1, 2, 3]
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({tuple(sorted(t.params.items())) for t in trials}) == 4
    of_trials = runs_of(workspace, "trial")
    assert sorted(r.data.tags["trial"] for r in of_trials) == ["0", "1", "2", "3"]
    (parent,), (worker,) = runs_of(workspace, "tune"), runs_of(workspace, "worker")
    assert parent.info.status == worker.info.status == "FINISHED"
    assert worker.data.tags["study_run_id"] == parent.info.run_id
    assert "gain_test_auc" in parent.data.metrics or "tuned_test_auc" in parent.data.metrics
    refits = [r.data.tags["refit"] for r in runs_of(workspace, "refit")]
    assert len(refits) == len(set(refits))
    assert len(workspace.client.search_model_versions("name='sgc-phantom'")) == 1
    params = {k: v for run in workspace.runs() for k, v in run.data.params.items()}
    assert postgres_server.password not in str(params)


def a_study(workspace, monkeypatch):
    """A study of one trial, whose work is done in this process; its configuration; the data."""
    monkeypatch.chdir(ROOT)
    mlflow.set_tracking_uri(workspace.tracking_uri)
    values = TINY | {"cache_dir": str(workspace.cache), "trials": "1", "checkpoint_every": "2"}
    arguments = [part for k, v in values.items() for part in (f"--{k}", v)]
    config = resolve_tuning(parse(TuneConfig, arguments), gpu=False)
    url = f"sqlite:///{workspace.folder / 'optuna.db'}"
    end_lost = partial(end_lost_trial, study="study")
    study = TuningStudy(config, url, "study", end_lost, worker="w")
    return study, config, load_data(config)


def test_a_pruned_trial_ends_as_a_pruned_run(workspace, monkeypatch):
    study, config, data = a_study(workspace, monkeypatch)
    # No AUC reaches it: every trial is pruned at its first validation.
    study.study.pruner = optuna.pruners.ThresholdPruner(lower=2.0)
    with start_run("study", {}) as run:
        objective = partial(run_trial, config=config, study=study, data=data, parent=run.run_id)
        study.work(objective, lambda trial: None)
    (trial,) = study.study.trials
    assert trial.state == TrialState.PRUNED
    (pruned,) = runs_of(workspace, "trial")
    assert pruned.info.status == "FINISHED"
    assert pruned.data.tags["trial_state"] == "pruned"
    assert "at step 4" in pruned.data.tags["pruned_because"]
    assert pruned.data.tags["mlflow.parentRunId"] == run.run_id
    curve = workspace.client.get_metric_history(pruned.info.run_id, "validation_auc")
    assert [point.step for point in curve] == [4]
    assert not list(workspace.cache.glob("checkpoints/*study-trial0"))


def test_a_trial_that_is_lost_after_its_training_hands_its_curves_on(workspace, monkeypatch):
    study, config, data = a_study(workspace, monkeypatch)

    def break_off(*_, **__):
        raise Outage("the server is gone")

    with start_run("study", {}) as run:
        objective = partial(run_trial, config=config, study=study, data=data, parent=run.run_id)
        with monkeypatch.context() as gone:
            gone.setattr(tune_trial, "prediction_table", break_off)
            with pytest.raises(Outage):
                study.work(objective, lambda trial: None)
        study.work(objective, lambda trial: None)
    lost, repeated = sorted(runs_of(workspace, "trial"), key=lambda r: int(r.data.tags["trial"]))
    assert lost.data.metrics["training_steps"] == repeated.data.metrics["training_steps"] == 12
    assert "val_auc" in repeated.data.metrics.keys() - lost.data.metrics.keys()
    for name in ("loss", "validation_auc", "training_steps"):
        of_lost, of_repeated = (
            [(p.step, p.value) for p in workspace.client.get_metric_history(r.info.run_id, name)]
            for r in (lost, repeated)
        )
        assert of_repeated == of_lost
        assert len(of_lost) == {"loss": 4, "validation_auc": 3, "training_steps": 1}[name]


def test_the_run_of_a_trial_that_the_study_never_heard_of_counts_as_lost(workspace, monkeypatch):
    study, config, data = a_study(workspace, monkeypatch)
    with start_run("study", {}) as run:
        trial = study.study.ask()
        run_trial(trial, config=config, study=study, data=data, parent=run.run_id)
        end_lost_trial(study.study.trials[0], study="study")
    (lost,) = runs_of(workspace, "trial")
    assert lost.info.status == "KILLED"
    assert lost.data.tags["trial_state"] == "lost"


@pytest.fixture
def one_trial(workspace, monkeypatch):
    """Arguments of a search of one trial in this process, which registers nothing."""
    monkeypatch.chdir(ROOT)
    mlflow.set_tracking_uri(workspace.tracking_uri)
    values = TINY | {"cache_dir": str(workspace.cache), "trials": "1", "refit_seeds": "1"}
    arguments = [part for k, v in values.items() for part in (f"--{k}", v)]
    return [*arguments, "--register_model", "false"]


def test_a_worker_that_is_stopped_leaves_the_run_of_the_study_as_it_is(
    workspace, one_trial, monkeypatch
):
    config = resolve_tuning(parse(TuneConfig, one_trial), gpu=False)
    name = tune.study_name(config, load_data(config))
    url = f"sqlite:///{workspace.folder / 'optuna.db'}"
    study = TuningStudy(config, url, name, lambda trial: None, worker="w")
    of_study = workspace.client.create_run("0", tags={"entry_point": "tune"}).info.run_id
    study.claims.settle("run", of_study)

    for variable in HURRIED:
        monkeypatch.setenv(variable, "5")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(tune, "run_trial", stop)
        with pytest.raises(KeyboardInterrupt):
            tune.main(one_trial)
    (worker,) = runs_of(workspace, "worker")
    assert worker.info.status == "KILLED"
    assert worker.data.tags["failure_reason"] == "interrupted"
    run = workspace.client.get_run(of_study)
    assert run.info.status == "RUNNING"
    assert "failure_reason" not in run.data.tags

    # The process of the study's run is stopped too: the work is done by the worker.
    workspace.client.set_tag(of_study, "failure_reason", "interrupted")
    workspace.client.set_terminated(of_study, "KILLED")
    tune.main(one_trial)
    run = workspace.client.get_run(of_study)
    assert run.info.status == "FINISHED"
    assert "failure_reason" not in run.data.tags
    assert "tuned_test_auc" in run.data.metrics
    below = runs_of(workspace, "trial") + runs_of(workspace, "refit")
    assert {r.data.tags["mlflow.parentRunId"] for r in below} == {of_study}
    (worker,) = runs_of(workspace, "worker")
    assert worker.info.status == "FINISHED"
    assert not [name for name in worker.data.metrics if not name.startswith("system/")]


def test_a_concluded_study_is_concluded_again_in_a_new_run_or_to_register(workspace, one_trial):
    tune.main(one_trial)
    (first,) = runs_of(workspace, "tune")
    assert not workspace.client.search_model_versions()

    tune.main([*one_trial, "--register_model", "true"])
    (version,) = workspace.client.search_model_versions("name='sgc-phantom'")
    (refit,) = (r for r in runs_of(workspace, "refit") if r.data.tags["refit"] == "tuned")
    assert version.run_id == refit.info.run_id
    assert float(version.tags["val_auc"]) == pytest.approx(refit.data.metrics["val_auc"])
    assert version.description == refit.data.tags["mlflow.note.content"]
    champion = workspace.client.get_model_version_by_alias("sgc-phantom", "champion")
    assert champion.version == version.version

    workspace.client.delete_run(first.info.run_id)
    tune.main(one_trial)
    (again,) = runs_of(workspace, "tune")
    for name in ("tuned_test_auc", "best_trial", "trials_complete"):
        assert again.data.metrics[name] == pytest.approx(first.data.metrics[name])
    assert again.data.tags["mlflow.note.content"] == first.data.tags["mlflow.note.content"]
    refits = [r.data.tags["refit"] for r in runs_of(workspace, "refit")]
    assert len(refits) == len(set(refits))  # what is fitted is not fitted again


def test_what_no_trial_may_learn_from_is_refused_before_the_first(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("SGC_CACHE_DIR", str(workspace.cache))
    mlflow.set_tracking_uri(workspace.tracking_uri)
    phantom = ["--phantom_patients", SMALL["phantom_patients"], "--image_size", "32"]
    train.main([*phantom, "--model", "majority", "--bootstrap", "100"])
    known = ["--init_from", "models:/majority-phantom/1", "--split_seed", "1"]
    for arguments, reason in (
        (["--unlabelled", "rest"], "unlabelled=rest finds no patient outside the split"),
        (known, r"majority-phantom/1 has seen \d+ patient"),
    ):
        with pytest.raises(UserError, match=reason):
            tune.main([*phantom, *arguments, "--trials", "1"])
        assert workspace.runs()[0].info.status == "FAILED"
    assert not runs_of(workspace, "trial")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "figures"),
    [
        ({"pruner": "hyperband", "trials": "8"}, ["history", "pareto"]),
        ({"objective": "bits_per_dim", "trials": "4"}, ["history", "pareto"]),
        (
            {"objective": "both", "trials": "4"},
            ["history_val_auc", "history_val_bits_per_dim", "pareto"],
        ),
    ],
)
def test_every_pruner_and_objective_comes_to_a_best_model(choice, figures, workspace):
    process = start(workspace, refit_seeds="1", **choice)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    (run,) = runs_of(workspace, "tune")
    assert run.info.status == "FINISHED"
    finished = run.data.metrics["trials_complete"] + run.data.metrics["trials_pruned"]
    assert finished == int(choice["trials"])
    shown = {f.path for f in workspace.client.list_artifacts(run.info.run_id, "figures")}
    assert {f"figures/{name}.png" for name in figures} <= shown
    assert workspace.client.search_model_versions("name='sgc-phantom'")
    study = the_study(f"sqlite:///{workspace.folder / 'optuna.db'}")
    values = [t.values for t in study.trials if t.state == TrialState.COMPLETE]
    best = study.trials[int(run.data.metrics["best_trial"])].values
    assert best[0] == max(value[0] for value in values)


def test_the_ui_shows_the_study_its_trials_and_the_best_model(resumed, study_run):
    trial = next(r for r in runs_of(resumed, "trial") if r.data.tags["trial_state"] == "complete")
    with browser_on(resumed) as browser:
        shown = browser.open("experiments/0/runs", study_run.info.run_name)
        assert study_run.info.run_name in shown
        browser.open(
            f"experiments/0/runs/{study_run.info.run_id}",
            *("research, not for diagnosis", "Show more"),
        )
        browser.click("Show more")
        browser.wait_for("refitted", "learning_rate")
        for figure in ("history", "importance", "parallel"):
            page = f"experiments/0/runs/{study_run.info.run_id}/artifacts/figures/{figure}.png"
            browser.open(page, f"{figure}.png")
            assert min(browser.wait_for_picture()) > 300
        browser.open(
            f"experiments/0/runs/{trial.info.run_id}", trial.info.run_name, "validation_auc"
        )
        browser.open("models", "sgc-phantom")
