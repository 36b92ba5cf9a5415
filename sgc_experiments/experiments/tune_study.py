"""The Optuna study behind ``tune``: who asks for the next trial, what is kept, who has died.

Optuna's own storage holds the study, so that any number of processes can work on it. Three things
it leaves open are settled here by claims in the same database (``claims.py``): one process at a
time asks for a trial, so that a study ends with exactly the trials that it was to have; the first
to start makes the study's MLflow run; one process at a time does each piece of work after the last
trial.

A trial whose process gives no sign of life for `lost_after` seconds is failed by any other process,
and its parameters are queued once more. A worker that goes on after a kill fails its own at once,
so that a study with one worker comes to the same trials as if nothing had happened.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import optuna
import pandas as pd
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from sgc_experiments.claims import Claims
from sgc_experiments.config import TuneConfig
from sgc_experiments.config.search_space import Dimension, Range
from sgc_experiments.errors import UserError
from sgc_experiments.training import Budget

Objective = Callable[[optuna.Trial], Sequence[float]]

# What the storage does for lost trials is old, but still called experimental.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# Of steps between a lost trial's last checkpoint and its end.
warnings.filterwarnings("ignore", "The reported value is ignored because this `step`")
optuna.logging.set_verbosity(optuna.logging.WARNING)
logger = logging.getLogger(__name__)

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_POLL_SECONDS = 1.0
_WORKER = "worker"
# With what the trial has reported, which its resumed training does not report again.
_retry = RetryHeartbeatStaleTrialCallback(max_retry=1, inherit_intermediate_values=True)


class TuningStudy:
    """A study in a database, as one of its workers sees it.

    Args:
        config: the resolved configuration.
        url: of the database.
        name: of the study; it is gone on with if it is there.
        on_lost: called with each trial whose process has died.
        worker: a name that no other living worker has; one that goes on has its old name.

    Raises:
        UserError: the database cannot be opened.
    """

    def __init__(
        self,
        config: TuneConfig,
        url: str,
        name: str,
        on_lost: Callable[[FrozenTrial], None],
        *,
        worker: str,
    ) -> None:
        self.config, self.name, self.on_lost, self.worker = config, name, on_lost, worker
        # Without the driver's name SQLAlchemy would look for one that is not installed.
        url = url.replace("postgresql://", "postgresql+psycopg2://", 1)
        try:
            with Claims(url, "", lost_after=config.lost_after).hold("tables"):
                storage = self._open(url)
            self.claims = Claims(url, name, lost_after=config.lost_after)
        except (SQLAlchemyError, ImportError) as error:
            raise UserError(
                f"storage={make_url(url).render_as_string(hide_password=True)} cannot be opened "
                f"({type(error).__name__}): check the address, and that the database is there "
                '(PostgreSQL also needs pip install -e ".[postgres]" in the project\'s folder).'
            ) from None
        targets = 2 if config.objective == "both" else 1
        self._storage = storage
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize"] * targets,
            pruner=self._pruner(),
            load_if_exists=True,
        )

    def _open(self, url: str) -> RDBStorage:
        waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        return RDBStorage(
            url,
            engine_kwargs={"pool_pre_ping": True, **waiting},
            heartbeat_interval=max(1, self.config.lost_after // 4),
            grace_period=self.config.lost_after,
            heartbeat_stale_trial_callback=self._fail_and_retry,
        )

    def _fail_and_retry(self, study: optuna.Study, trial: FrozenTrial) -> None:
        logger.info("trial %d was lost with its process", trial.number)
        self.on_lost(trial)
        self._repeat(study, trial)

    def _repeat(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Queue a trial once more, unless it is a repeat itself."""
        trial = copy.copy(trial)
        if "run_id" not in trial.user_attrs:  # perhaps half a point, which is drawn again
            trial.params, trial.distributions = {}, {}
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != _WORKER}
        _retry(study, trial)

    def _fail_left_trials(self) -> None:
        """Fail the trials whose process is known to be dead, whatever its last sign of life was.

        That is an earlier process of this worker, or, as the claim on the next trial is held here,
        one that died while it was asking for a trial: before its first sign of life, without which
        Optuna takes a trial for alive for ever.
        """
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if trial.user_attrs.get(_WORKER, self.worker) == self.worker:
                self.study.tell(trial.number, state=TrialState.FAIL)
                self._fail_and_retry(self.study, trial)

    def _pruner(self) -> optuna.pruners.BasePruner:
        config = self.config
        if config.pruner == "none" or config.objective == "both":
            return optuna.pruners.NopPruner()
        if config.pruner == "hyperband":
            budget = Budget.parse(config.trial_budget)
            return optuna.pruners.HyperbandPruner(
                min_resource=config.validate_every,
                max_resource=budget.amount if budget.unit == "steps" else "auto",
            )
        # The first validation comes too early to tell, and three trials too few to compare with.
        return optuna.pruners.MedianPruner(
            n_startup_trials=3, n_warmup_steps=2 * config.validate_every
        )

    def _sampler(self, place: int) -> optuna.samplers.BaseSampler:
        """The sampler of one trial; its seed is the trial's own, or workers would draw alike."""
        digest = hashlib.sha256(f"{self.config.seed}/{place}".encode()).digest()
        return optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4], "little"),
            n_startup_trials=min(10, max(4, self.config.trials // 3)),
            multivariate=True,
            group=True,
            constant_liar=True,
        )

    def work(self, objective: Objective, after: Callable[[FrozenTrial], None]) -> None:
        """Run trials until the study has as many as it was to have.

        Args:
            objective: runs a trial and returns its values.
            after: called after each trial of this process, complete or pruned.
        """
        while True:
            with ExitStack() as turn:
                turn.enter_context(self.claims.hold("next trial"))
                optuna.storages.fail_stale_trials(self.study)
                self._fail_left_trials()
                trials = self.study.get_trials(deepcopy=False)
                states = [trial.state for trial in trials]
                finished = sum(state in _FINISHED for state in states)
                if finished >= self.config.trials:
                    return
                if not trials:
                    self.study.enqueue_trial(self.config.start(), user_attrs={"defaults": True})
                running = states.count(TrialState.RUNNING)
                if TrialState.WAITING in states or finished + running < self.config.trials:
                    self._run_one(objective, after, turn, place=_place(trials))
                    continue
            time.sleep(_POLL_SECONDS)  # others have the rest

    def _run_one(
        self,
        objective: Objective,
        after: Callable[[FrozenTrial], None],
        turn: ExitStack,
        *,
        place: int,
    ) -> None:
        begun: list[optuna.Trial] = []

        def begin(trial: optuna.Trial) -> Sequence[float]:
            begun.append(trial)
            trial.set_user_attr(_WORKER, self.worker)
            # Optuna's own thread may come too late with the first: see `_fail_left_trials`.
            self._storage.record_heartbeat(trial._trial_id)
            turn.close()  # the next may ask
            return objective(trial)

        def end(_: optuna.Study, trial: FrozenTrial) -> None:
            after(trial)

        self.study.sampler = self._sampler(place)
        try:
            self.study.optimize(begin, n_trials=1, callbacks=[end])
        except BaseException as error:
            if not begun:
                raise
            trial = self.study.get_trials(deepcopy=False)[begun[0].number]
            if isinstance(error, Exception) and self._was_taken_over(trial):
                logger.warning(
                    "trial %d: this process was silent for so long that another has it now",
                    trial.number,
                )
                return
            if trial.state == TrialState.FAIL:
                self._repeat(self.study, trial)
            raise

    def _was_taken_over(self, trial: FrozenTrial) -> bool:
        return any(
            trial.number in _retry.retry_history(other)
            for other in self.study.get_trials(deepcopy=False)
        )

    def suggest(self, trial: optuna.Trial, name: str, dimension: Dimension) -> float | int | str:
        """Let the sampler choose a value or label of one dimension."""
        if not isinstance(dimension, Range):
            return trial.suggest_categorical(name, dimension.labels)
        if dimension.whole:
            low, high = int(dimension.low), int(dimension.high)
            return trial.suggest_int(name, low, high, log=dimension.log)
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)

    def repeats(self, trial: optuna.Trial) -> int | None:
        """The number of the lost trial that a trial repeats, if it repeats one."""
        return _retry.retried_trial_number(self.study.get_trials(deepcopy=False)[trial.number])

    def best(self) -> FrozenTrial:
        """The complete trial with the best value; of a Pareto front, that with the best AUC.

        Raises:
            UserError: no trial was completed.
        """
        complete = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if not complete:
            raise UserError(
                "No trial was completed: all were pruned or diverged. Narrow the search, such as "
                "search=learning_rate=0.0005:0.002:log, or use pruner=none."
            )
        return max(complete, key=lambda trial: (trial.values[0], -trial.number))

    def table(self) -> pd.DataFrame:
        """One row per trial: `number`, `state`, `defaults`, what it reached, its parameters.

        `last_auc` is the validation AUC that it reported last, after `last_step` steps; `repeats`
        is the number of the lost trial that it repeats.
        """
        rows: list[dict[str, Any]] = []
        for trial in self.study.get_trials(deepcopy=False):
            steps = trial.intermediate_values
            last = max(steps, default=None)
            attributes = trial.user_attrs
            rows.append(
                {
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    "defaults": attributes.get("defaults", False),
                    "repeats": _retry.retried_trial_number(trial),
                    "val_auc": attributes.get("val_auc"),
                    "val_bits_per_dim": attributes.get("val_bits_per_dim"),
                    "last_auc": None if last is None else steps[last],
                    "last_step": last,
                    "seconds": trial.duration.total_seconds() if trial.duration else None,
                    "run_id": attributes.get("run_id"),
                }
                | {f"param.{name}": value for name, value in trial.params.items()}
            )
        table = pd.DataFrame(rows)
        numbers = ["repeats", "val_auc", "val_bits_per_dim", "last_auc", "last_step", "seconds"]
        return table.astype(dict.fromkeys(numbers, "float64"))

    def importances(self, target: int) -> dict[str, float]:
        """Share of the variance of a value that each parameter explains (fANOVA), largest first.

        Of parameters that all complete trials have; empty with fewer than two complete trials.
        """
        complete = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len({tuple(trial.values) for trial in complete}) < 2:
            return {}
        return optuna.importance.get_param_importances(
            self.study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self.config.seed),
            target=lambda trial: trial.values[target],
        )


def _place(trials: Sequence[FrozenTrial]) -> int:
    """The number that the next trial would have if none had been lost; a repeat has its first's."""
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
    first = len(trials)
    if waiting:
        repeated = _retry.retried_trial_number(waiting[0])
        first = waiting[0].number if repeated is None else repeated
    return sum(_retry.retried_trial_number(trial) is None for trial in trials[:first])
