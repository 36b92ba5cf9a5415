"""One MLflow run, in the vocabulary of the experiments: what is logged, and in which form."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import LoggedModelStatus, RunTag
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as MAX_RETRIES
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT as REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.tracking import MlflowClient
from mlflow.types import ParamSchema, ParamSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from sgc_experiments.delivery import MOST_METRICS, MetricSender
from sgc_experiments.provenance import PROJECT_DIR, commit, environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAMPION = "champion"
CHAMPION_MEANS = (
    f"The alias `{CHAMPION}` marks the version with the best validation AUC under its split; one "
    "under another split takes it unless it was fitted to fewer patients."
)
# What the logged model needs to answer, as opposed to what fitting it needs.
SERVING_REQUIREMENTS = (
    "dicomsdl",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pydantic-settings",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "PyYAML",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchdiffeq",
    "torchvision",
    "tqdm",
)
# Where things lie on this machine says nothing about the result, and paths can hold identifiers. A
# run may go on with another number of processes, which is a tag.
_NOT_LOGGED = frozenset(
    {"boxes", "cache_dir", "config", "data_dir", "images", "out", "processes", "storage", "table"}
)
RESUME_KEY = "resume_key"
DESCRIPTION = MLFLOW_RUN_NOTE
REASON = "failure_reason"

logger = logging.getLogger(__name__)


class TrackedRun:
    """One MLflow run, in the vocabulary of the experiments.

    The run that is open in this process, or that of another, which is logged into as it is: only
    inputs and models need a run that is open.

    Attributes:
        run_id: of MLflow.
        experiment_id: of MLflow.
        folder: where the run keeps what an interruption must not destroy; None if it keeps nothing.
    """

    def __init__(self, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.folder: Path | None = None
        self._sender: MetricSender | None = None
        # Names of metrics with their steps; what is measured once has none.
        self._logged: set[tuple[str, int | None]] = set()

    def keep_in(self, folder: Path, *, logged: Collection[str]) -> None:
        """Let the run outlive its process, and its metrics an outage of the tracking server.

        Args:
            folder: of the run alone.
            logged: names of the metrics that the run has already.
        """
        self.folder = folder
        self._sender = MetricSender(self.run_id, folder / f"metrics-{self.run_id}.jsonl")
        self._logged = {(name, None) for name in logged}

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration, as params ``config.*`` and as a file to run again."""
        shown = {name: value for name, value in config.items() if name not in _NOT_LOGGED}
        params = {f"config.{name}": _param(value) for name, value in shown.items()}
        mlflow.log_params(params, run_id=self.run_id)
        self.log_parameters(config, "config")

    def log_parameters(self, config: Mapping[str, Any], name: str) -> None:
        """Log a configuration as ``<name>.yaml``, which the command line takes as ``config=``."""
        shown = {key: value for key, value in config.items() if key not in _NOT_LOGGED}
        text = yaml.safe_dump(_plain(shown), sort_keys=False)
        mlflow.log_text(text, f"{name}.yaml", run_id=self.run_id)

    def log_environment(self) -> None:
        """Log package versions, Python, the platform and the commit."""
        text = json.dumps(environment(), indent=2)
        mlflow.log_text(text, "environment.json", run_id=self.run_id)
        self.set_tags({"commit": commit()})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log finite metrics; a metric that does not exist (NaN) is left out.

        In a run that has a folder, those of a step are sent when the server takes them, and what
        the run has already is not logged again.
        """
        finite = {name: float(v) for name, v in metrics.items() if np.isfinite(v)}
        if self._sender and step is not None:
            self._sender.log(finite, step)
            return
        new = {name: v for name, v in finite.items() if (name, step) not in self._logged}
        if new:
            mlflow.log_metrics(new, step=step, run_id=self.run_id)

    def take_over_curves(self, run_id: str) -> None:
        """Log the curves of a run whose work this one goes on with; they are not logged again.

        A curve has steps from 1; what is measured once has none, and is measured again.
        """
        client = MlflowClient()
        curves = [
            point
            for name in client.get_run(run_id).data.metrics
            if not name.startswith("system/")
            for point in client.get_metric_history(run_id, name)
            if point.step
        ]
        for start in range(0, len(curves), MOST_METRICS):
            client.log_batch(self.run_id, metrics=curves[start : start + MOST_METRICS])
        self._logged |= {(point.key, point.step) for point in curves}

    def log_figure(self, figure: Figure, name: str) -> None:
        """Log a figure as ``figures/<name>.png``."""
        path = f"figures/{name}.png"
        MlflowClient().log_figure(self.run_id, figure, path, save_kwargs={"dpi": 110})

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        """Log a table as ``<name>.csv``."""
        text = table.to_csv(index=False, lineterminator="\n")
        mlflow.log_text(text, f"{name}.csv", run_id=self.run_id)

    def log_parquet(self, table: pd.DataFrame, name: str) -> None:
        """Log a table as ``<name>.parquet``, with its types."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.parquet"
            table.to_parquet(path, index=False)
            mlflow.log_artifact(str(path), run_id=self.run_id)

    def log_page(self, html: str, name: str) -> None:
        """Log a page as ``<name>.html``."""
        mlflow.log_text(html, f"{name}.html", run_id=self.run_id)

    def log_input(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Log one subset as a dataset input; only pseudonyms and labels are in ``table``."""
        with warnings.catch_warnings():
            # MLflow's advice on missing integers is for models' inputs; labels are never missing.
            warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer")
            dataset = from_pandas(table, name=name, digest=digest[:36], targets="label")
            added(lambda: mlflow.log_input(dataset, context=context))

    def show_below(self, run_id: str) -> None:
        """Let the UI list this run below another."""
        self.set_tags({MLFLOW_PARENT_RUN_ID: run_id})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values become strings."""
        texts = [RunTag(name, str(value)) for name, value in tags.items()]
        MlflowClient().log_batch(self.run_id, tags=texts)

    def describe(self, markdown: str) -> None:
        """Set the description that the MLflow UI shows at the top of the run."""
        MlflowClient().set_tag(self.run_id, DESCRIPTION, markdown)

    def flush(self) -> None:
        """Wait until the metrics of all steps are sent.

        Raises:
            Exception: why they could not be.
        """
        if self._sender:
            self._sender.flush()
            self._sender.close()

    def break_off(self, reason: str, *, resumable: bool, hurried: bool) -> None:
        """Tag a run that ends before it is finished.

        Args:
            reason: the tag ``failure_reason``.
            resumable: whether the same command may go on in this run.
            hurried: the process is about to end and has no time for many attempts.
        """
        if self._sender:  # what is not sent stands in the journal
            self._sender.close(seconds=2.0)
        if hurried:
            os.environ[MAX_RETRIES.name] = "1"
            os.environ[REQUEST_TIMEOUT.name] = "5"
        self.set_tags({REASON: reason})
        if self.folder and not resumable:
            MlflowClient().delete_tag(self.run_id, RESUME_KEY)

    def finish(self) -> None:
        """End a run that is not open in this process and whose work is done, however it ended."""
        client = MlflowClient()
        if REASON in client.get_run(self.run_id).data.tags:
            client.delete_tag(self.run_id, REASON)
        client.set_terminated(self.run_id)

    def log_classifier(
        self,
        folder: Path,
        *,
        example: np.ndarray,
        answer: pd.DataFrame,
        prior: Mapping[str, float],
        metadata: dict[str, Any],
    ) -> str:
        """Log a saved classifier as a model from code: safetensors and source, no pickle.

        Args:
            folder: what the classifier's ``save`` wrote.
            example: (N, S, S) float32 images in [0, 1].
            answer: what the model answers to ``example``.
            prior: the share of each class that the answers hold for unless another is given.
            metadata: JSON-able facts stored with the model.

        Returns:
            The model's URI. A run that goes on and has its model already logs no second one.
        """
        if logged := self.find_model():
            return logged
        # Inputs are numbers or files; MLflow's schema can name one kind only, and its complaints
        # would quote the pixels: the model checks both itself.
        signature = ModelSignature(
            outputs=infer_signature(model_output=answer).outputs, params=_serving_params(prior)
        )
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PROJECT_DIR / "sgc_experiments" / "serving.py"),
            artifacts={"classifier": str(folder)},
            code_paths=[str(PROJECT_DIR / "sgc_experiments"), str(PROJECT_DIR / "baselines")],
            signature=signature,
            input_example=example,
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}" for name in SERVING_REQUIREMENTS
            ],
            metadata=metadata,
        )
        return str(info.model_uri)

    def find_model(self) -> str | None:
        """The URI of the model that the run has logged; a half one is deleted, where allowed."""
        client, found = MlflowClient(), None
        for model in mlflow.search_logged_models(
            [self.experiment_id],
            filter_string=f"source_run_id = '{self.run_id}'",
            output_format="list",
        ):
            if model.status == LoggedModelStatus.READY:
                found = model.model_uri
                continue
            try:
                client.delete_logged_model(model.model_id)
            except MlflowException as error:
                if error.get_http_status_code() != HTTPStatus.FORBIDDEN:
                    raise
        return found

    def is_registered(self) -> bool:
        """Whether the registry has a version from this run."""
        return bool(MlflowClient().search_model_versions(f"run_id='{self.run_id}'"))

    def register(
        self, model_uri: str, name: str, *, tags: Mapping[str, object], description: str
    ) -> str:
        """Register a logged model, and let it be ``champion`` where `CHAMPION_MEANS` says so.

        Args:
            model_uri: what :meth:`log_classifier` returned.
            name: the registered model, ``<model>-<dataset>``.
            tags: the version's tags; ``val_auc``, ``split_digest`` and ``n_train_patients`` decide
                on the alias.
            description: markdown shown with the version, and with the registered model while this
                version is its champion.

        Returns:
            The version number.
        """
        client = MlflowClient()
        texts = {key: str(value) for key, value in tags.items()}
        versions = client.search_model_versions(f"name='{name}'")
        # A process that was killed may have come this far already.
        mine = [version.version for version in versions if version.run_id == self.run_id]
        version = mine[0] if mine else mlflow.register_model(model_uri, name, tags=texts).version
        client.update_model_version(name, version, description=description)
        others = [other for other in versions if other.run_id != self.run_id]
        champion = str(client.get_registered_model(name).aliases.get(CHAMPION))
        if any(str(o.version) == champion and _is_of_more_patients(o.tags, texts) for o in others):
            logger.info(
                "Version %s of %s stays its %s: it was fitted to more patients.",
                champion, name, CHAMPION,
            )  # fmt: skip
        elif all(_is_better(texts, other.tags) for other in others):
            added(lambda: client.set_registered_model_alias(name, CHAMPION, version))
            client.update_registered_model(
                name, f"{CHAMPION_MEANS} Now version {version}:\n\n{description}"
            )
        return str(version)


def _is_of_more_patients(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a version, by its tags, was fitted to more patients, under another split."""
    return one.get("split_digest") != other["split_digest"] and int(
        one.get("n_train_patients", 0)
    ) > int(other["n_train_patients"])


def _is_better(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a version, by its tags, is better than another, or of another split."""
    if other.get("split_digest") != one["split_digest"] or "val_auc" not in other:
        return True
    return float(one["val_auc"]) > float(other["val_auc"])


def added(call: Callable[[], object]) -> None:
    """Let MLflow add what another process may be adding at the same moment.

    It looks for a dataset, an alias or an experiment's tag before it adds one, so of two processes
    that do so at once the later is refused; it finds the thing the next time.
    """
    try:
        call()
    except MlflowException:
        call()


def _param(value: Any) -> str:
    if isinstance(value, Path):  # where it lies is no one else's matter
        return value.name
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _param(value) if isinstance(value, tuple | list | Path) else value
        for name, value in config.items()
    }


def _serving_params(prior: Mapping[str, float]) -> ParamSchema:
    """What a caller may choose: see ``serving.ImageClassifier.predict``."""
    shares = list(prior.values())
    if len(shares) == 2:
        prevalence = ParamSpec("prevalence", "double", shares[1])
    else:
        prevalence = ParamSpec("prevalence", "double", shares, shape=(-1,))
    return ParamSchema(
        [prevalence, ParamSpec("evaluations", "long", 0), ParamSpec("map", "boolean", False)]
    )
