"""Low-data results in the MLflow registry, and the learning curve rebuilt from nothing else.

Every cell of an ablation is a version of ``<model>-<dataset>-lowdata``. Its tags hold the result of
the cell and the point of the curve that it belongs to, because tags are all that a version carries
on every backend; `low_data_versions` and `curve_from_registry` ask `search_model_versions` alone.

==========================  ================================================================
model, dataset, seed        what was fitted, and the seed of patients and training
n_patients                  labelled patients, training and validation together
n_train_patients            those of them that were trained on
fraction                    n_patients of all that there were
prevalence                  share of malignant patients asked for, or "natural"
val_auc, test_auc           of the cell, with test_auc_low and test_auc_high; of more than two
                            classes the macro AUC
test_average_precision      of the cell
curve_auc                   mean over seeds, with curve_auc_low and curve_auc_high (95 %, over test
                            patients and seeds); the same for curve_average_precision
curve_seeds                 number of seeds behind it
split_digest, data_digest   of who was in which subset, and of the images
whole_split_digest          of the split that the cell's patients are drawn from
ablation_run_id             the latest ablation that counts the version
cell_run_id                 the run that fitted it
==========================  ================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sgc_experiments.errors import UserError
from sgc_experiments.metrics import logged_auc
from sgc_experiments.past_runs import PastRun
from sgc_experiments.tracked_run import added

NATURAL = "natural"
_OF_THE_RUN = (
    "model", "dataset", "seed", "n_patients", "n_train_patients", "fraction", "prevalence",
    "split_digest", "data_digest",
)  # fmt: skip
_RESULTS = ("val_auc", "test_auc", "test_auc_low", "test_auc_high", "test_average_precision")
_NUMBERS = ("fraction", *_RESULTS)
_COUNTS = ("seed", "n_patients", "n_train_patients")


@dataclass(frozen=True)
class CellVersion:
    """A finished cell, as it is to stand in the registry.

    Attributes:
        run: that fitted it; its tags hold what the cell is, and ``model_uri``.
        curve: tags ``curve_*``: the point of the learning curve that it belongs to.
    """

    run: PastRun
    curve: Mapping[str, object]

    def tags(self, ablation: str) -> dict[str, str]:
        """The version's tags, for the ablation that counts it."""
        tags = {name: self.run.tags[name] for name in _OF_THE_RUN}
        for name in _RESULTS:
            value = logged_auc(self.run.metrics, name)
            if value is not None:
                tags[name] = repr(value)
        tags |= {name: str(value) for name, value in self.curve.items()}
        return tags | {"ablation_run_id": ablation, "cell_run_id": self.run.run_id}


def low_data_name(model: str, dataset: str) -> str:
    """The registered model of a model's cells; a name there holds no dot."""
    return f"{model.replace('.', '_')}-{dataset}-lowdata"


def alias_of(n_patients: str, prevalence: str) -> str:
    """The alias of the best version of a training size: n50, or n50-p20 at 20 % malignant."""
    skew = "" if prevalence == NATURAL else f"-p{float(prevalence):.4%}".rstrip("0%").rstrip(".")
    return f"n{n_patients}{skew}".replace(".", "_")


def publish_cells(
    name: str, cells: Sequence[CellVersion], *, ablation: str, split_digest: str, description: str
) -> None:
    """Register a model's cells, point an alias at the best of each size, and describe the model.

    A cell that is registered already keeps its version; its tags are brought up to date. The best
    is that of all ablations under one split.

    Args:
        name: of the registered model, `low_data_name`.
        cells: the finished cells of one model.
        ablation: the run of the ablation.
        split_digest: of the whole split that the cells' patients are drawn from.
        description: markdown, the table of the ablation.
    """
    client = MlflowClient()
    known = {version.tags.get("cell_run_id"): version for version in _versions(f"name='{name}'")}
    for cell in cells:
        tags = cell.tags(ablation) | {"whole_split_digest": split_digest}
        version = known.get(cell.run.run_id)
        if version is None:
            mlflow.register_model(cell.run.tags["model_uri"], name, tags=tags)
        else:
            changed = {k: v for k, v in tags.items() if version.tags.get(k) != v}
            for key, value in changed.items():
                client.set_model_version_tag(name, version.version, key, value)
    rivals: dict[str, list[ModelVersion]] = {}
    for version in _versions(f"name='{name}'"):
        if version.tags.get("whole_split_digest") == split_digest:
            rivals.setdefault(_alias(version.tags), []).append(version)
    for alias in {_alias(cell.run.tags) for cell in cells}:
        best = max(rivals[alias], key=_val_auc)
        added(partial(client.set_registered_model_alias, name, alias, str(best.version)))
    client.update_registered_model(name, description)


def _alias(tags: Mapping[str, str]) -> str:
    return alias_of(tags["n_patients"], tags["prevalence"])


def _val_auc(version: ModelVersion) -> tuple[float, int]:
    """By which versions are ranked: the older of two equals wins, and any result over none."""
    value = float(version.tags.get("val_auc", "nan"))
    return -math.inf if math.isnan(value) else value, -int(version.version)


def low_data_versions(dataset: str, *, ablation: str = "") -> pd.DataFrame:
    """The cells of an ablation, from the registry alone.

    Args:
        dataset: whose models.
        ablation: run id of the ablation; "" is that of the newest version.

    Returns:
        One row per version: `name`, `version`, and the tags of the head of this module, numbers
        as numbers; sorted by model, prevalence, size and seed.

    Raises:
        UserError: there are none.
    """
    found = _versions(f"name LIKE '%-{dataset}-lowdata'")
    found = [version for version in found if "ablation_run_id" in version.tags]
    if found and not ablation:
        ablation = max(found, key=lambda v: v.creation_timestamp).tags["ablation_run_id"]
    rows = [
        {"name": v.name, "version": str(v.version), **v.tags}
        for v in found
        if v.tags["ablation_run_id"] == ablation
    ]
    if not rows:
        raise UserError(
            f"The registry holds no low-data results of {dataset}"
            + (f" from the ablation {ablation}" if ablation else "")
            + "; run the entry point fewshot_ablation first."
        )
    table = pd.DataFrame(rows)
    curve = [c for c in table if c.startswith("curve_")]
    for column in (*_NUMBERS, *curve):
        if column in table:
            table[column] = table[column].astype(float)
    table = table.astype(dict.fromkeys((*_COUNTS, "curve_seeds"), int))
    return table.sort_values(["model", "prevalence", "n_patients", "seed"], ignore_index=True)


def curve_from_registry(
    dataset: str, *, metric: str = "auc", ablation: str = "", prevalence: str = NATURAL
) -> pd.DataFrame:
    """The learning curve of an ablation, from the registry alone, for `figures.learning_curves`.

    Args:
        dataset: whose models.
        metric: auc or average_precision.
        ablation: run id of the ablation; "" is that of the newest version.
        prevalence: share of malignant patients in training, as its tag says it.

    Returns:
        One row per model and size: `model`, `size`, `metric`, `value`, `low`, `high`, `n_seeds`.

    Raises:
        UserError: there is no such ablation, metric or prevalence.
    """
    versions = low_data_versions(dataset, ablation=ablation)
    point = f"curve_{metric}"
    if point not in versions:
        known = ", ".join(
            c.removeprefix("curve_")
            for c in versions
            if c.startswith("curve_") and f"{c}_low" in versions
        )
        raise UserError(f"The registry holds no curve of {metric}; there are: {known}.")
    rows = versions[versions["prevalence"] == prevalence]
    if rows.empty:
        known = ", ".join(sorted(set(versions["prevalence"])))
        raise UserError(f"The ablation has no prevalence {prevalence}; there are: {known}.")
    rows = rows.drop_duplicates(["model", "n_patients"])
    return pd.DataFrame(
        {
            "model": rows["model"],
            "size": rows["n_patients"].astype(float),
            "metric": metric,
            "value": rows[point],
            "low": rows[f"{point}_low"],
            "high": rows[f"{point}_high"],
            "n_seeds": rows["curve_seeds"],
        }
    ).reset_index(drop=True)


def _versions(condition: str) -> list[ModelVersion]:
    """All versions that a condition holds for, page by page."""
    client = MlflowClient()
    try:
        page = client.search_model_versions(condition, max_results=200)
        found: list[ModelVersion] = list(page)
        while page.token:
            page = client.search_model_versions(condition, max_results=200, page_token=page.token)
            found += page
    except MlflowException as error:
        raise UserError(f"The registry did not answer ({error.error_code}).") from None
    return found
