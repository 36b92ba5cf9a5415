"""How a run begins and ends. With `tracked_run` and `past_runs`, all that talks to MLflow.

An entry point opens one :class:`TrackedRun` and speaks through it. Under ``mlflow run`` the run
already exists (``MLFLOW_RUN_ID``) and is taken over; otherwise one is made in the active
experiment. A run that stops on an exception ends FAILED with the reason in the tag
``failure_reason``, one that is interrupted ends KILLED. The same command then goes on in the same
run, which it finds by the tag ``resume_key`` (see `resumption`); a user's mistake removes the tag
and what was kept to go on from.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import OperationalError

from sgc_experiments.config import DataConfig
from sgc_experiments.delivery import server_trouble
from sgc_experiments.errors import Outage, UserError, without_paths
from sgc_experiments.past_runs import open_run
from sgc_experiments.provenance import commit
from sgc_experiments.resumption import RunFolder, discard, empty, run_folder
from sgc_experiments.tracked_run import REASON, RESUME_KEY, TrackedRun, added

__all__ = [
    "LOST",
    "Store",
    "TrackedRun",
    "beside_store",
    "end_lost_run",
    "end_run",
    "fail_inherited_run",
    "is_there",
    "move_run",
    "start_run",
]

LOST = "its process gave no sign of life any more"
_EXPERIMENT_KIND = "mlflow.experimentKind"
_DISK_FULL = "The disk is full; free some space: the same command goes on from its last checkpoint."

logger = logging.getLogger(__name__)


class Store(NamedTuple):
    """Where runs are kept, for a process that is to add to them.

    Attributes:
        tracking_uri: of the runs.
        registry_uri: of the registered models.
        experiment_id: that the runs belong to.
    """

    tracking_uri: str
    registry_uri: str
    experiment_id: str

    @classmethod
    def of(cls, run: TrackedRun) -> Store:
        """The store of a run that is open; its files are found from any working folder."""
        tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        return cls(_absolute(tracking), _absolute(registry), run.experiment_id)

    def enter(self) -> None:
        """Make it this process's; the run that ``mlflow run`` opened is another process's."""
        os.environ.pop("MLFLOW_RUN_ID", None)
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.registry_uri)
        mlflow.set_experiment(experiment_id=self.experiment_id)


def _absolute(uri: str) -> str:
    scheme, separator, path = uri.partition(":///")
    return f"{scheme}:///{Path(path).absolute()}" if separator and scheme == "sqlite" else uri


@contextmanager
def start_run(
    name: str,
    tags: Mapping[str, object],
    *,
    config: DataConfig | None = None,
    nested: bool = False,
    run_id: str = "",
    parent: str | None = None,
    system_metrics: bool = True,
) -> Iterator[TrackedRun]:
    """Open a run, or go on in the one that the same command has begun, and close it as it ends.

    Args:
        name: how the UI lists the run.
        tags: set at once, so that a run that fails early can be found too.
        config: the resolved configuration, by which with the tags the run is found again; without
            one it keeps nothing on this machine.
        nested: below the run that is open.
        run_id: of a run to go on with; "" looks for one by ``config``, or makes one.
        parent: below this run, which another process holds open; with ``nested``, in place of the
            one that is open here.
        system_metrics: whether to record the load of the machine.

    Raises:
        Outage: the disk is full, or the tracking server is gone.
    """
    texts = {"mlflow.runName": name} | {key: str(value) for key, value in tags.items()}
    with ExitStack() as stack:
        run = None
        try:
            above = (parent or open_run().info.run_id) if nested else None
            folder = _hold_folder(stack, config, texts, parent=above) if config else None
            unfinished = run_id or (_unfinished_run(folder, nested=nested) if folder else "")
            active = mlflow.start_run(
                run_id=unfinished or None,
                run_name=None if "MLFLOW_RUN_ID" in os.environ else name,
                nested=nested,
                parent_run_id=None if nested else parent,
                tags=texts | ({RESUME_KEY: folder.key} if folder else {}),
                log_system_metrics=system_metrics,
            )
            run = TrackedRun(active.info.run_id, active.info.experiment_id)
            if REASON in active.data.tags:  # of the attempt that is gone on with
                mlflow.delete_tag(REASON)
            if nested and parent:  # which MLflow allows for the open run only
                run.show_below(parent)
            if folder:
                if not unfinished:
                    empty(folder)
                run.keep_in(folder.path, logged=active.data.metrics)
            _show_as_model_training(run.experiment_id)
            yield run
            run.flush()
            mlflow.end_run()
        except BaseException as error:
            told = _told(error)
            if run:
                _break_off(run, told)
                if folder and _is_mistake(told):  # nothing goes on from it
                    discard(folder)
            if told is error:
                raise
            raise told from None
        if folder:
            discard(folder)


def _hold_folder(
    stack: ExitStack, config: DataConfig, tags: Mapping[str, str], *, parent: str | None
) -> RunFolder:
    identity = dict(tags) | {"commit": commit(), "tracking_uri": mlflow.get_tracking_uri()}
    if parent:
        identity["parent"] = parent
    dumped = config.model_dump(mode="json")
    return stack.enter_context(run_folder(config.cache_dir, dumped, **identity))


def _unfinished_run(folder: RunFolder, *, nested: bool) -> str:
    """The id of the run that this command has begun and not finished, or "".

    Since the folder is held, no other process is at work on it. With ``mlflow run``, the run that
    was opened for the command is given up for it.
    """
    inherited = None if nested else os.environ.get("MLFLOW_RUN_ID")
    # With `mlflow run --experiment-name`, the experiment is that of the inherited run.
    experiment = [MlflowClient().get_run(inherited).info.experiment_id] if inherited else None
    found = mlflow.search_runs(
        experiment,
        filter_string=f"tags.{RESUME_KEY} = '{folder.key}'",
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    unfinished = [run.info.run_id for run in found if run.info.status != "FINISHED"]
    if not unfinished:
        return ""
    logger.info("Going on in run %s, which was broken off.", unfinished[0])
    if inherited:
        os.environ.pop("MLFLOW_RUN_ID")
        if inherited != unfinished[0]:
            _give_up_inherited(inherited, unfinished[0])
    return str(unfinished[0])


def _give_up_inherited(inherited: str, unfinished: str) -> None:
    """Put the empty run of ``mlflow run`` below the one in which its command goes on.

    It cannot be deleted: ``mlflow run`` asks for it at its end.
    """
    client = MlflowClient()
    client.set_tag(inherited, "continued_in", unfinished)
    move_run(inherited, unfinished)
    client.set_terminated(inherited, "FINISHED")
    logger.info("The run %s, opened by `mlflow run`, stays empty.", inherited)


def _told(error: BaseException) -> BaseException:
    """The exception to raise: a sentence, where a disk or a server is at fault."""
    if isinstance(error, UserError):
        return error
    if _is_full_disk(error):
        return Outage(_DISK_FULL)
    return server_trouble(error) or error


def _is_mistake(error: BaseException) -> bool:
    """Whether the user has to change the command, so that it will be another one."""
    return isinstance(error, UserError) and not isinstance(error, Outage)


def _is_full_disk(error: BaseException) -> bool:
    """Whether the operating system says so, or the database of the runs."""
    if isinstance(error, MlflowException | OperationalError):
        return "disk is full" in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _break_off(run: TrackedRun, error: BaseException) -> None:
    """End a run with the reason, as far as the server answers."""
    killed = isinstance(error, KeyboardInterrupt)
    status = RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED)
    try:
        try:
            run.break_off(
                _reason(error),
                resumable=not _is_mistake(error),
                hurried=killed or isinstance(error, Outage),
            )
        finally:  # else MLflow would try to end the run once more when the process exits
            mlflow.end_run(status)
    except Exception as failure:
        if not server_trouble(failure):
            raise
        logger.warning("The tracking server could not be told how the run ended.")


def _show_as_model_training(experiment_id: str) -> None:
    """Let the UI open the experiment with runs and models, not with traces of a chat."""
    client = MlflowClient()
    if _EXPERIMENT_KIND not in client.get_experiment(experiment_id).tags:
        kind = "custom_model_development"
        added(lambda: client.set_experiment_tag(experiment_id, _EXPERIMENT_KIND, kind))


def is_there(run_id: str) -> bool:
    """Whether a run exists and was not deleted."""
    try:
        return MlflowClient().get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
    except MlflowException:
        return False


def end_lost_run(run_id: str, tags: Mapping[str, str]) -> None:
    """End the run of a process that died without ending it."""
    if is_there(run_id):
        end_run(run_id, RunStatus.to_string(RunStatus.KILLED), tags)


def end_run(run_id: str, status: str, tags: Mapping[str, object]) -> None:
    """End a run whose own process could not.

    Args:
        run_id: the run.
        status: FAILED or KILLED.
        tags: that say why.
    """
    client = MlflowClient()
    for name, value in tags.items():
        client.set_tag(run_id, name, str(value))
    client.set_terminated(run_id, status)


def move_run(run_id: str, parent: str) -> None:
    """Nest a run below another one."""
    MlflowClient().set_tag(run_id, MLFLOW_PARENT_RUN_ID, parent)


def fail_inherited_run(reason: str) -> None:
    """End the run that ``mlflow run`` opened as FAILED, if it has not got that far itself."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    try:
        end_run(run_id, "FAILED", {REASON: without_paths(reason)})
    except Exception as failure:
        if not server_trouble(failure):
            raise
        logger.warning("The tracking server could not be told how the run ended.")


def _reason(error: BaseException) -> str:
    """A user's mistake speaks for itself; of anything else only the kind is told.

    The text of a foreign exception can hold header values or file names.
    """
    if isinstance(error, UserError):
        return without_paths(str(error))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"internal error ({type(error).__name__}); the log of the run has the details"


def beside_store(name: str) -> Path:
    """Where a file lies that belongs to the runs: beside MLflow's SQLite file, else here."""
    uri = mlflow.get_tracking_uri()
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:") else Path()
    return (folder / name).absolute()
