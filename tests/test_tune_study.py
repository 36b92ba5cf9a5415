"""Several processes on one study: no trial lost, none doubled, whoever is killed or stopped."""

import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from contextlib import nullcontext

import optuna
import pytest
from optuna.trial import TrialState

from sgc_experiments.config import TuneConfig, resolve_tuning
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.tune_study import TuningStudy
from tests.conftest import ROOT


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'optuna.db'}"
    server = request.getfixturevalue("postgres_server")
    return server.dsn(server.new_database())


def start(url, trials, seconds, name=""):
    name = name or uuid.uuid4().hex
    command = [sys.executable, "-m", "tests.tune_worker", url, str(trials), str(seconds), name]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(worker):
    out, err = worker.communicate(timeout=120)
    assert worker.returncode == 0, err
    return out.split("\n")


def trials_of(url):
    address = url.replace("postgresql:", "postgresql+psycopg2:")
    return optuna.load_study(study_name="study", storage=address).trials


def check(trials, count):
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == count
    assert len({tuple(sorted(t.params.items())) for t in finished}) == count
    assert next(t.number for t in trials if t.user_attrs.get("defaults")) == 0


def test_workers_that_start_at_once_share_the_trials(url):
    workers = [start(url, 20, 0.1) for _ in range(2)]
    lines = [finish(worker) for worker in workers]
    begun = [line for out in lines for line in out if line.startswith("begun")]
    assert sorted(begun) == sorted(f"begun {number}" for number in range(20))
    trials = trials_of(url)
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    check(trials, 20)


def test_a_killed_worker_s_trial_is_failed_and_retried_once(url):
    worker = start(url, 4, 60)
    assert worker.stdout.readline() == "begun 0\n"
    worker.kill()
    worker.wait()
    lines = finish(start(url, 4, 0.1))
    assert "lost 0" in lines
    trials = trials_of(url)
    check(trials, 4)
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [0]
    (repeated,) = (t for t in trials if t.system_attrs.get("failed_trial") == 0)
    assert repeated.state == TrialState.COMPLETE
    assert repeated.params == trials[0].params
    assert len(trials) == 5


def test_a_worker_that_was_killed_twice_comes_to_the_trials_of_one_that_was_not(tmp_path):
    unbroken, killed = (f"sqlite:///{tmp_path / name}.db" for name in ("unbroken", "killed"))
    finish(start(unbroken, 8, 0.05))
    for number in (2, 6):
        worker = start(killed, 8, 0.5, name="the same")
        while worker.stdout.readline() != f"begun {number}\n":
            assert worker.poll() is None
        worker.kill()
        worker.wait()
    finish(start(killed, 8, 0.05, name="the same"))
    expected, found = (
        [(t.params, t.values) for t in trials_of(url) if t.state == TrialState.COMPLETE]
        for url in (unbroken, killed)
    )
    assert found == expected
    assert len(trials_of(killed)) == 10


def test_an_interrupted_worker_s_trial_is_retried_by_the_next(tmp_path):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    worker = start(url, 3, 60)
    assert worker.stdout.readline() == "begun 0\n"
    worker.send_signal(signal.SIGINT)
    worker.wait()
    finish(start(url, 3, 0.1))
    trials = trials_of(url)
    check(trials, 3)
    assert trials[1].params == trials[0].params


def test_a_worker_that_was_asleep_leaves_its_trial_to_the_one_that_took_it_over(tmp_path):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    sleeper = start(url, 3, 2)
    assert sleeper.stdout.readline() == "begun 0\n"
    time.sleep(0.5)  # between two signs of life: asleep within one, it would keep SQLite's lock
    sleeper.send_signal(signal.SIGSTOP)
    time.sleep(5)
    lines = finish(start(url, 3, 0.1))
    assert "lost 0" in lines
    sleeper.send_signal(signal.SIGCONT)
    finish(sleeper)
    check(trials_of(url), 3)


def test_a_trial_gives_its_first_sign_of_life_before_the_next_may_begin(tmp_path, monkeypatch):
    # Without Optuna's thread, which may be late. A trial that gave none is never taken for lost.
    monkeypatch.setattr("optuna.study._optimize.get_heartbeat_thread", lambda *_: nullcontext())
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    config = resolve_tuning(TuneConfig(trials=1), gpu=False)
    study = TuningStudy(config, url, "study", print, worker="w")
    signs = []

    def objective(trial):
        with sqlite3.connect(tmp_path / "optuna.db") as database:
            signs.extend(database.execute("SELECT trial_id FROM trial_heartbeats"))
        return [0.5]

    study.work(objective, lambda trial: None)
    assert len(signs) == 1


def test_a_database_that_cannot_be_opened_is_told_without_its_password():
    config = resolve_tuning(TuneConfig(), gpu=False)
    with pytest.raises(UserError) as error:
        TuningStudy(config, "postgresql://me:secret@127.0.0.1:1/x", "study", print, worker="w")
    assert "me:***@127.0.0.1:1/x" in str(error.value)
    assert "secret" not in str(error.value)


def test_the_sampler_of_a_trial_is_its_own_and_the_same_every_time(tmp_path):
    config = resolve_tuning(TuneConfig(), gpu=False)
    drawn = []
    for name in ("a", "b"):
        url = f"sqlite:///{tmp_path / name}.db"
        study = TuningStudy(
            config.model_copy(update={"trials": 4}), url, "study", print, worker="w"
        )

        def objective(trial, study=study):
            for parameter, dimension in list(config.space().items())[6:]:
                study.suggest(trial, parameter, dimension)
            return [trial.params["learning_rate"]]

        study.work(objective, lambda trial: None)
        drawn.append([trial.params for trial in study.study.trials])
    assert drawn[0] == drawn[1]
    assert len({params["learning_rate"] for params in drawn[0]}) == 4
