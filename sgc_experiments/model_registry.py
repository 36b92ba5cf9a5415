"""Classifiers out of MLflow's registry, as the files that their ``save`` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sgc_experiments.errors import UserError

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


def pinned(uri: str) -> str:
    """``models:/NAME/VERSION`` for a URI that may name an alias, which can move.

    Raises:
        UserError: the URI is none, or the registry does not know it.
    """
    match = _URI.fullmatch(uri)
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
        known = ", ".join(sorted(m.name for m in client.search_registered_models())) or "none"
        raise UserError(f"The registry has no model {uri}; it has: {known}.") from None
    return f"models:/{name}/{version}"


def run_id_of(uri: str) -> str:
    """The id of the run that fitted ``models:/NAME/VERSION``, as `pinned` returns it, or ""."""
    name, version = uri.removeprefix("models:/").split("/")
    return MlflowClient().get_model_version(name, version).run_id or ""


def download_classifier(uri: str, folder: Path) -> Path:
    """Fetch a registered classifier into ``folder``; returns where its files lie.

    Raises:
        UserError: it is not there, or is no classifier of this project.
    """
    try:
        model = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError):
        raise UserError(f"The files of {uri} could not be fetched from the registry.") from None
    classifier = Path(model) / "artifacts" / "classifier"
    if not classifier.is_dir():
        raise UserError(f"{uri} is no classifier of this project.")
    return classifier
