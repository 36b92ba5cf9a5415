"""Registered models, read back: their files, and the run that fitted them."""

from __future__ import annotations

import errno
import os
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
        names = sorted(model.name for model in MlflowClient().search_registered_models())
        raise UserError(
            f"model_uri={model_uri} could not be read; give models:/NAME@champion or "
            f"models:/NAME/VERSION, where NAME is one of {', '.join(names) or '(none registered)'}."
        ) from None
    if not (local / CLASSIFIER / "facts.json").is_file():
        raise UserError(f"model_uri={model_uri} is no classifier that this project logged.")
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
