"""Registered models, read back: their files, and the run that fitted them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from sgc_experiments.errors import UserError
from sgc_experiments.past_runs import PastRun, past_run

# A model is a hundred small files, of code for the most part.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
CLASSIFIER = Path("artifacts") / "classifier"
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


def pinned(uri: str) -> str:
    """``models:/NAME/VERSION`` for a URI that may name an alias, which can move.

    Raises:
        UserError: the URI is none, or the registry does not know it.
    """
    match = _REGISTERED.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri!r} names no registered model: write models:/NAME@ALIAS.")
    name, version, alias = match["name"], match["version"], match["alias"]
    client = MlflowClient()
    try:
        if alias:
            version = client.get_model_version_by_alias(name, alias).version
        else:
            client.get_model_version(name, version)
    except MlflowException:
        raise UserError(f"The registry has no model {uri}; it has: {_known()}.") from None
    return f"models:/{name}/{version}"


def _known() -> str:
    names = sorted(model.name for model in MlflowClient().search_registered_models())
    return ", ".join(names) or "(none registered)"


def run_id_of(uri: str) -> str:
    """The id of the run that fitted ``models:/NAME/VERSION``, as `pinned` returns it, or ""."""
    name, version = uri.removeprefix("models:/").split("/")
    return MlflowClient().get_model_version(name, version).run_id or ""


def download_model(model_uri: str, folder: Path) -> tuple[Path, str]:
    """Download a model that an experiment of this project logged.

    Args:
        model_uri: such as ``models:/sgc-phantom@champion`` or ``models:/sgc-phantom/3``.
        folder: where to put it.

    Returns:
        The folder that the classifier was saved in, and the id of the run that fitted it ("" where
        the model does not say).

    Raises:
        UserError: there is no such model, or it is none of this project's.
    """
    try:
        if not model_uri.startswith(("models:/", "runs:/")):
            raise OSError(errno.EINVAL, "neither of the registry nor of a run")
        local = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=str(folder)))
        run_id = Model.load(str(local)).run_id or ""
    except (MlflowException, OSError):
        raise UserError(
            f"The model {model_uri} could not be read; give models:/NAME@champion or "
            f"models:/NAME/VERSION, where NAME is one of {_known()}."
        ) from None
    if not (local / CLASSIFIER / "facts.json").is_file():
        raise UserError(f"The model {model_uri} is no classifier that this project logged.")
    return local / CLASSIFIER, run_id


def run_that_fitted(run_id: str, model_uri: str) -> PastRun:
    """Read the run that fitted a model.

    Raises:
        UserError: it is not in this tracking store.
    """
    try:
        return past_run(mlflow.get_run(run_id))
    except MlflowException:
        raise UserError(
            f"The run that fitted {model_uri} is not in this tracking store, so that nobody knows "
            "whom the model has seen; use the store that it was fitted in, or fit it again."
        ) from None
