"""Metrics on their way to a tracking server that may be away for a while.

Training does not wait for the server. A metric is written to a journal on disk, and a thread sends
it; MLflow's client tries again by itself for some minutes, the thread for as long as training goes
on. A run that is taken up again sends what the journal has and the server has not, and logs no step
of a metric twice.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from sgc_experiments.errors import Outage

MOST_METRICS = 1000  # MLflow's bound on the metrics of a request
_PAUSE_SECONDS = 15.0

logger = logging.getLogger(__name__)


def is_outage(error: BaseException) -> bool:
    """Whether an exception says that the tracking server or its database does not answer."""
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
        return True
    if not isinstance(error, MlflowException):
        return False
    if error.error_code == "TEMPORARILY_UNAVAILABLE":  # so MLflow tells what a database refuses
        return True
    remote = urlsplit(mlflow.get_tracking_uri()).scheme in ("http", "https")
    return remote and error.error_code == "INTERNAL_ERROR" and not isinstance(error, RestException)


def server_name() -> str:
    """The tracking server as it can be shown: without a password."""
    parts = urlsplit(mlflow.get_tracking_uri())
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


class MetricSender:
    """Sends the metrics of a run, in order, from a thread.

    Args:
        run_id: of MLflow.
        journal: a file, written as metrics come and read when the run is taken up again.

    Raises:
        MlflowException: the server does not answer when asked what it has.
    """

    def __init__(self, run_id: str, journal: Path) -> None:
        self._run_id, self._journal = run_id, journal
        self._client = MlflowClient()
        self._known: dict[str, set[int]] = defaultdict(set)
        self._waiting: list[Metric] = self._unsent()
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._urgent = self._closed = False
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics of a step; those that the run has already are left out.

        Raises:
            OSError: the journal cannot be written.
        """
        now = int(time.time() * 1000)
        new = [
            Metric(key, value, now, step)
            for key, value in metrics.items()
            if step not in self._known[key]
        ]
        with self._journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_as_list(metric)) + "\n" for metric in new)
        with self._changed:
            for metric in new:
                self._known[metric.key].add(step)
            self._waiting += new
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is sent.

        Raises:
            Exception: why the last attempt, begun or awaited now, has failed.
        """
        with self._changed:
            self._urgent, self._failure = True, None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failure or not self._waiting)
            self._urgent = False
            if self._waiting and self._failure:
                raise self._failure

    def close(self, seconds: float = 0.0) -> None:
        """Send nothing more, after having waited so long for what is on its way."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failure or not self._waiting, timeout=seconds)
            self._closed = True
            self._changed.notify_all()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                batch = self._waiting[:MOST_METRICS]
            try:
                self._client.log_batch(self._run_id, metrics=batch)
                failure = None
            except Exception as error:  # whatever it is, training goes on; `flush` raises it
                failure = error
                if trouble := server_trouble(error):
                    logger.warning("Metrics wait, and are sent again: %s", trouble)
            with self._changed:
                self._failure = failure
                if failure is None:
                    del self._waiting[: len(batch)]
                self._changed.notify_all()
                if failure is not None:
                    self._changed.wait_for(
                        lambda: self._closed or self._urgent, timeout=_PAUSE_SECONDS
                    )

    def _unsent(self) -> list[Metric]:
        """What an earlier process has written to the journal and not sent."""
        if not self._journal.exists():
            return []
        logged = []
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            try:
                logged.append(Metric(*json.loads(line)))
            except (ValueError, TypeError):  # the line that was being written at a kill
                continue
        for metric in logged:
            self._known[metric.key].add(metric.step)
        there = {
            key: {m.step for m in self._client.get_metric_history(self._run_id, key)}
            for key in self._known
        }
        with self._journal.open("a", encoding="utf-8") as file:
            file.write("\n")  # in case the last line is unfinished
        return [metric for metric in logged if metric.step not in there[metric.key]]


def _as_list(metric: Metric) -> list[str | float | int]:
    return [metric.key, metric.value, metric.timestamp, metric.step]


def server_trouble(error: BaseException) -> Outage | None:
    """What to tell the user if the server does not answer, or not this user; None otherwise."""
    if is_outage(error):
        return Outage(
            f"The tracking server {server_name()} does not answer. When it answers again, the same "
            "command sends what is missing and goes on."
        )
    status = 0
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.HTTPError) and error.response is not None:  # of an artifact
        status = error.response.status_code
    if status == HTTPStatus.UNAUTHORIZED:
        return Outage(
            f"The tracking server {server_name()} does not know this user: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; then the same command goes on."
        )
    if status == HTTPStatus.FORBIDDEN:
        return Outage(
            f"The tracking server {server_name()} refuses this user: ask its administrator for "
            "EDIT permission on the experiment and the registered model, or set "
            "MLFLOW_EXPERIMENT_NAME to an experiment of your own."
        )
    return None
