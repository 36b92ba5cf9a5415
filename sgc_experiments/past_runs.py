"""Earlier runs, read back: for comparisons, and to go on where a command was broken off.

Only tags, metrics and tables are read, never a model.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sgc_experiments.delivery import server_trouble
from sgc_experiments.errors import UserError

# A bar per table would hide the log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# Text that looks like numbers ("4", "1.10") must stay text, and an empty one is no gap.
_TEXT = (
    "image_id", "patient", "exam", "laterality", "view", "density", "subset", "fold",
)  # fmt: skip


@dataclass(frozen=True)
class PastRun:
    """A run of before.

    Attributes:
        run_id: of MLflow.
        status: FINISHED, FAILED, KILLED, or RUNNING (perhaps only left so by a killed process).
        name: as the UI lists it.
        tags: as they were set.
        params: the resolved configuration, without its prefix.
        metrics: the last value of each.
    """

    run_id: str
    status: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]

    def table(self, name: str) -> pd.DataFrame:
        """A table that the run logged by that name.

        Raises:
            UserError: the run has no such table.
        """
        try:
            text = mlflow.artifacts.load_text(f"runs:/{self.run_id}/{name}.csv")
        except (MlflowException, OSError):
            raise UserError(
                f"The run {self.name} ({self.run_id}) has no {name}.csv; leave it out, or fit it "
                "again."
            ) from None
        header = pd.read_csv(io.StringIO(text), nrows=0).columns
        numbers = [column for column in header if column not in _TEXT]
        return pd.read_csv(
            io.StringIO(text),
            dtype={column: str for column in header if column in _TEXT},
            keep_default_na=False,
            na_values={column: ["", "nan"] for column in numbers},
        )


def finished_runs(experiment: str = "", *, tags: Mapping[str, str] | None = None) -> list[PastRun]:
    """The finished runs of an experiment, oldest first.

    Args:
        experiment: its name; "" is that of the run that is open.
        tags: that the runs must have.

    Raises:
        UserError: there is no such experiment.
    """
    return [
        run
        for run in earlier_runs(_experiment_id(experiment), tags=tags or {})
        if run.status == "FINISHED"
    ]


def earlier_runs(experiment_id: str | None, *, tags: Mapping[str, str]) -> list[PastRun]:
    """The runs of an experiment, however they ended, oldest first.

    Args:
        experiment_id: of MLflow; None: the one that a new run would belong to.
        tags: that the runs must have.

    Raises:
        Outage: the tracking server is gone.
    """
    conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    try:
        found = mlflow.search_runs(
            None if experiment_id is None else [experiment_id],
            filter_string=" and ".join(conditions),
            order_by=["attributes.start_time ASC"],
            output_format="list",
        )
    except Exception as error:
        told = server_trouble(error)
        if told:
            raise told from None
        raise
    return [past_run(run) for run in found]


def running(tags: Mapping[str, str]) -> list[str]:
    """The ids of the runs of the open run's experiment that have begun and not ended."""
    conditions = [
        "attributes.status = 'RUNNING'",
        *(f"tags.`{name}` = '{value}'" for name, value in tags.items()),
    ]
    found = mlflow.search_runs(
        [_experiment_id("")], filter_string=" and ".join(conditions), output_format="list"
    )
    return [run.info.run_id for run in found]


def read_run(run_id: str) -> PastRun:
    """The run of an id that another process has told."""
    return past_run(MlflowClient().get_run(run_id))


def open_run() -> Run:
    """The run that this process has open.

    Raises:
        RuntimeError: none is.
    """
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("no run is open in this process")
    return run


def _experiment_id(name: str) -> str:
    if not name:
        return str(open_run().info.experiment_id)
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        known = ", ".join(sorted(e.name for e in MlflowClient().search_experiments()))
        raise UserError(f"There is no experiment named {name!r}; there are: {known}.")
    return str(experiment.experiment_id)


def past_run(run: Run) -> PastRun:
    """A run as MLflow returns it, in the vocabulary of the experiments."""
    prefix = "config."
    return PastRun(
        run_id=run.info.run_id,
        status=run.info.status,
        name=run.info.run_name,
        tags=dict(run.data.tags),
        params={
            key.removeprefix(prefix): value
            for key, value in run.data.params.items()
            if key.startswith(prefix)
        },
        metrics=dict(run.data.metrics),
    )
