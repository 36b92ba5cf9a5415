"""Entry point ``tune``: search the SDE, the noise schedule and the training of the classifier.

Any number of processes work on one study, each started by the same command, or several by one
(``study_workers``, here or on a Ray cluster); one that was killed is started again in the same way.
The study has one MLflow run with all trials below it. The command that begins the study uses its
own run for that, and so does the same command again; the run of any other is listed below as
``worker``, and goes on in the study's.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from optuna.trial import FrozenTrial

from sgc_experiments.command_line import parse
from sgc_experiments.config import AUTO, TuneConfig, resolve_tuning
from sgc_experiments.data.decode_pool import available_cores
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.datasets import Data, load_data, log_data
from sgc_experiments.experiments.executors import check_shared, execute, is_cluster
from sgc_experiments.experiments.leakage import check_start
from sgc_experiments.experiments.starting_weights import seen_by_registered
from sgc_experiments.experiments.tune_refit import Refit, gain, refit_all, refits, register_refits
from sgc_experiments.experiments.tune_report import log_gain, log_study
from sgc_experiments.experiments.tune_study import TuningStudy
from sgc_experiments.experiments.tune_trial import end_lost_trial, run_trial
from sgc_experiments.experiments.unlabelled import find_unlabelled
from sgc_experiments.experiments.worker_processes import WorkerDied
from sgc_experiments.provenance import commit
from sgc_experiments.resumption import key_of
from sgc_experiments.tracking import Store, TrackedRun, beside_store, is_there, start_run
from sgc_experiments.training_settings import choose_device

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and tune."""
    tune(parse(TuneConfig, arguments))


def tune(config: TuneConfig) -> None:
    """Work on the study that ``config`` describes until it is concluded.

    Raises:
        UserError: the data, the database or a parameter does not allow it; the run is FAILED with
            the reason.
    """
    gpu = choose_device(config.device).type == "cuda"
    config = resolve_tuning(config, gpu=gpu)
    tags = {"entry_point": "tune", "model": "sgc", "dataset": config.dataset}
    run_name = f"tune-{config.dataset}-seed{config.seed}"
    with start_run(run_name, tags, config=config) as own:
        own.log_config(config.model_dump())
        own.log_environment()
        data = load_data(config)
        _check_sources(config, data)
        name = study_name(config, data)
        end_lost = partial(end_lost_trial, study=name)
        study = TuningStudy(config, _storage(config), name, end_lost, worker=own.run_id)
        run_id = _run_of_study(study, own)
        check_shared(config.executor, Store.of(own).tracking_uri, "MLFLOW_TRACKING_URI")
        check_shared(config.executor, _storage(config), "storage")
        if run_id == own.run_id:
            own.set_tags({"study": name})
            log_data(own, data)
            share_study(config, Store.of(own), _storage(config), gpu=gpu)
            _work(own, config, study, data)
            return
        logger.info("going on with study %s, run %s", name, run_id)
        own.set_tags({"entry_point": "worker", "study": name, "study_run_id": run_id})
        own.show_below(run_id)
        run = TrackedRun(run_id, own.experiment_id)
        _work(run, config, study, data)
        run.finish()  # its own process may have died


def _check_sources(config: TuneConfig, data: Data) -> None:
    """Refuse before the first trial what every trial would only be pruned for.

    Raises:
        UserError: there are no images without labels, or the weights to start from know patients
            that are judged on.
    """
    find_unlabelled(config.defaults(), data)
    if config.init_from:
        seen = seen_by_registered(config.init_from)
        check_start(seen, data.split.manifest, f"init_from={config.init_from}")


def share_study(config: TuneConfig, store: Store, storage: str, *, gpu: bool) -> None:
    """Let other workers do the work; what those leave undone that die is left to the caller."""
    if config.executor == "local" and config.study_workers == 1:
        return
    alone = {"executor": "local", "study_workers": 1, "storage": storage}
    cores = available_cores()
    threads = 1 if is_cluster(config.executor) else max(1, cores // config.study_workers)
    job = WorkerJob(config.model_copy(update=alone), store)
    results = execute(
        config.executor,
        run_worker,
        [job] * config.study_workers,
        workers=config.study_workers,
        threads=threads,
        gpu=gpu,
    )
    with contextlib.closing(results):
        for position, result in results:
            reason = result.cause if isinstance(result, WorkerDied) else result
            if reason:
                logger.warning("worker %d ended early: %s", position, reason)


class WorkerJob(NamedTuple):
    """What a worker is told: the same command, for itself alone, and where its run belongs."""

    config: TuneConfig
    store: Store


def run_worker(job: WorkerJob) -> str:
    """Work on a study until it is concluded; why that was not possible, or ""."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job.store.enter()
        tune(job.config)
    except UserError as error:
        return str(error)
    except Exception as error:  # whose text may quote data, and stays in this process's log
        logger.exception("a worker failed")
        return f"internal {type(error).__name__}"
    return ""


def study_name(config: TuneConfig, data: Data) -> str:
    """The name that all commands with the same data, space and objective give to their study."""
    key = key_of(config.of_study(), data.dataset.digest, data.split.digest)
    return f"tune-{config.dataset}-{config.objective}-{key[:12]}"


def _storage(config: TuneConfig) -> str:
    if config.storage != AUTO:
        return config.storage
    return f"sqlite:///{beside_store('optuna.db')}"


def _run_of_study(study: TuningStudy, own: TrackedRun) -> str:
    """The study's MLflow run: that of the first command, as long as it is there."""
    run_id = study.claims.settle("run", own.run_id)
    if not is_there(run_id):
        run_id = study.claims.replace("run", run_id, own.run_id)
    return run_id


def _work(run: TrackedRun, config: TuneConfig, study: TuningStudy, data: Data) -> None:
    begun = study.claims.settle("commit", commit())
    if begun != commit():
        logger.warning("This study was begun with another version of the code (%s).", begun)
    objective = partial(run_trial, config=config, study=study, data=data, parent=run.run_id)
    study.work(objective, _after_trial(run, config, study))
    best = study.best()
    of_best = config.with_point(best.params)
    planned = refits(config, of_best, data, study.name)
    runs = refit_all(planned, study, data, parent=run.run_id)
    with study.claims.hold("conclusion"):
        concluded = _conclusion(run, config, planned)
        if not study.claims.known(concluded):
            log_study(run, config, study, best, of_best)
            log_gain(
                run, best, *gain(planned, runs, n_bootstrap=config.bootstrap, seed=config.seed)
            )
            register_refits(planned, runs, data)
            study.claims.settle(concluded, run.run_id)
    logger.info("study %s is concluded: see run %s", study.name, run.run_id)


def _conclusion(run: TrackedRun, config: TuneConfig, planned: Sequence[Refit]) -> str:
    """The name of the fact that a study is concluded as a command asks for it, in its run."""
    refit_keys = [refit.tags["refit_key"] for refit in planned]
    asked = (config.trials, config.bootstrap, config.register_model)
    return f"concluded {key_of(run.run_id, *asked, refit_keys)}"


def _after_trial(
    run: TrackedRun, config: TuneConfig, study: TuningStudy
) -> Callable[[FrozenTrial], None]:
    """What tells of each trial in the study's run and in the log, with what remains."""
    started = time.monotonic()
    mine = 0

    def after(trial: FrozenTrial) -> None:
        nonlocal mine
        mine += 1
        table = study.table()
        values = {
            name: trial.user_attrs[name]
            for name in ("val_auc", "val_bits_per_dim")
            if name in trial.user_attrs
        }
        best = table.loc[table["state"] == "complete", "val_auc"].max()
        run.log_metrics(values | {"best_val_auc": best}, step=trial.number)
        left = config.trials - int(table["state"].isin(["complete", "pruned"]).sum())
        minutes = left * (time.monotonic() - started) / mine / 60
        result = f"validation AUC {values['val_auc']:.3f}" if values else "pruned"
        logger.info(
            "trial %d: %s (best %.3f); %d to go, about %.0f min",
            trial.number, result, best, max(left, 0), max(minutes, 0),
        )  # fmt: skip

    return after
