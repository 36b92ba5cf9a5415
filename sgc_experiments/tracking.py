"""The only place that talks to MLflow: runs, datasets, models and the registry.

An entry point opens one :class:`TrackedRun` and speaks through it. Under ``mlflow run`` the run
already exists (``MLFLOW_RUN_ID``) and is taken over; otherwise one is made in the active
experiment. A run that stops on an exception ends FAILED with the reason in the tag
``failure_reason``, one that is interrupted ends KILLED.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.tracking import MlflowClient
from mlflow.types import ParamSchema, ParamSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from sgc_experiments.errors import UserError

PROJECT_DIR = Path(__file__).resolve().parents[1]
CHAMPION = "champion"
LOST = "its process gave no sign of life any more"
CHAMPION_MEANS = (
    f"The alias `{CHAMPION}` marks the version with the best validation AUC under its split."
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
# Where things lie on this machine says nothing about the result, and paths can hold identifiers.
_NOT_LOGGED = frozenset(
    {"boxes", "cache_dir", "config", "data_dir", "images", "out", "storage", "table"}
)
_EXPERIMENT_KIND = "mlflow.experimentKind"


class TrackedRun:
    """The active MLflow run, in the vocabulary of the experiments."""

    def __init__(self, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration, as params ``config.*`` and as a file to run again."""
        shown = {name: value for name, value in config.items() if name not in _NOT_LOGGED}
        mlflow.log_params({f"config.{name}": _param(value) for name, value in shown.items()})
        self.log_parameters(config, "config")

    def log_parameters(self, config: Mapping[str, Any], name: str) -> None:
        """Log a configuration as ``<name>.yaml``, which the command line takes as ``config=``."""
        shown = {key: value for key, value in config.items() if key not in _NOT_LOGGED}
        mlflow.log_text(yaml.safe_dump(_plain(shown), sort_keys=False), f"{name}.yaml")

    def log_environment(self) -> None:
        """Log package versions, Python, the platform and the commit."""
        packages = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        }
        mlflow.log_text(json.dumps(environment, indent=2), "environment.json")
        mlflow.set_tag("commit", commit())

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log finite metrics; a metric that does not exist (NaN) is left out."""
        finite = {name: float(v) for name, v in metrics.items() if np.isfinite(v)}
        if finite:
            mlflow.log_metrics(finite, step=step)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Log a figure as ``figures/<name>.png``."""
        mlflow.log_figure(figure, f"figures/{name}.png", save_kwargs={"dpi": 110})

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        """Log a table as ``<name>.csv``."""
        mlflow.log_text(table.to_csv(index=False, lineterminator="\n"), f"{name}.csv")

    def log_parquet(self, table: pd.DataFrame, name: str) -> None:
        """Log a table as ``<name>.parquet``, with its types."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.parquet"
            table.to_parquet(path, index=False)
            mlflow.log_artifact(str(path))

    def log_page(self, html: str, name: str) -> None:
        """Log a page as ``<name>.html``."""
        mlflow.log_text(html, f"{name}.html")

    def log_input(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Log one subset as a dataset input; only pseudonyms and labels are in ``table``."""
        with warnings.catch_warnings():
            # MLflow's advice on missing integers is for models' inputs; labels are never missing.
            warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer")
            dataset = mlflow.data.from_pandas(table, name=name, digest=digest[:36], targets="label")
            try:
                mlflow.log_input(dataset, context=context)
            except MlflowException:
                # MLflow looks for the dataset before it adds it, so of two runs that log one
                # dataset at one moment the later is refused; it finds the dataset the next time.
                mlflow.log_input(dataset, context=context)

    def show_below(self, run_id: str) -> None:
        """Let the UI list this run below another."""
        mlflow.set_tag("mlflow.parentRunId", run_id)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values become strings."""
        mlflow.set_tags({name: str(value) for name, value in tags.items()})

    def describe(self, markdown: str) -> None:
        """Set the description that the MLflow UI shows at the top of the run."""
        mlflow.set_tag("mlflow.note.content", markdown)

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
            The model's URI.
        """
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
        return info.model_uri

    def register(
        self, model_uri: str, name: str, *, tags: Mapping[str, object], description: str
    ) -> str:
        """Register a logged model; it becomes ``champion`` when it is the best under its split.

        Args:
            model_uri: what :meth:`log_classifier` returned.
            name: the registered model, ``<model>-<dataset>``.
            tags: the version's tags; ``val_auc`` and ``split_digest`` decide on the alias.
            description: markdown shown with the version, and with the registered model while this
                version is its champion.

        Returns:
            The version number.
        """
        client = MlflowClient()
        texts = {key: str(value) for key, value in tags.items()}
        rivals = [
            float(version.tags["val_auc"])
            for version in client.search_model_versions(f"name='{name}'")
            if version.tags.get("split_digest") == texts["split_digest"]
            and "val_auc" in version.tags
        ]
        version = mlflow.register_model(model_uri, name, tags=texts).version
        client.update_model_version(name, version, description=description)
        if all(float(texts["val_auc"]) > rival for rival in rivals):
            client.set_registered_model_alias(name, CHAMPION, version)
            client.update_registered_model(
                name, f"{CHAMPION_MEANS} Now version {version}:\n\n{description}"
            )
        return str(version)


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
        """The store of a run that is open."""
        return cls(mlflow.get_tracking_uri(), mlflow.get_registry_uri(), run.experiment_id)

    def enter(self) -> None:
        """Make it this process's; the run that ``mlflow run`` opened is another process's."""
        os.environ.pop("MLFLOW_RUN_ID", None)
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.registry_uri)
        mlflow.set_experiment(experiment_id=self.experiment_id)


@contextmanager
def start_run(
    name: str,
    tags: Mapping[str, object],
    *,
    nested: bool = False,
    run_id: str = "",
    parent: str | None = None,
    system_metrics: bool = True,
) -> Iterator[TrackedRun]:
    """Open a run (or take over the one that ``mlflow run`` opened) and close it as it ends.

    Args:
        name: how the UI lists the run.
        tags: set at once, so that a run that fails early can be found too.
        nested: below the run that is open.
        run_id: of a run to go on with; "" makes one.
        parent: below this run, which another process holds open.
        system_metrics: whether to record the load of the machine.
    """
    active = mlflow.start_run(
        run_id=run_id or None,
        run_name=None if "MLFLOW_RUN_ID" in os.environ else name,
        nested=nested,
        parent_run_id=parent,
        log_system_metrics=system_metrics,
    )
    run = TrackedRun(active.info.run_id, active.info.experiment_id)
    if "failure_reason" in active.data.tags:  # of the attempt that is gone on with
        mlflow.delete_tag("failure_reason")
    _show_as_model_training(active.info.experiment_id)
    try:
        run.set_tags({"mlflow.runName": name, **tags})
        if "failure_reason" in active.data.tags:  # of an attempt before this one
            mlflow.delete_tag("failure_reason")
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        run.set_tags({"failure_reason": _reason(error)})
        mlflow.end_run(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
        raise
    mlflow.end_run()


def _show_as_model_training(experiment_id: str) -> None:
    """Let the UI open the experiment with runs and models, not with traces of a chat."""
    client = MlflowClient()
    if _EXPERIMENT_KIND not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, _EXPERIMENT_KIND, "custom_model_development")


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
    if run_id:
        end_run(run_id, "FAILED", {"failure_reason": reason})


def _reason(error: BaseException) -> str:
    """A user's mistake speaks for itself; of anything else only the kind is told.

    The text of a foreign exception can hold header values or file names.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"internal error ({type(error).__name__}); the log of the run has the details"


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


def beside_store(name: str) -> Path:
    """Where a file lies that belongs to the runs: beside MLflow's SQLite file, else here."""
    uri = mlflow.get_tracking_uri()
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:") else Path()
    return (folder / name).absolute()


def commit() -> str:
    """The commit of the running code, with ``-dirty`` when files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
