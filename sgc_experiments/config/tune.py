"""Parameters of the search for better parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from sgc_experiments.config.fit import Executor, FitConfig, TrainConfig, resolve_defaults
from sgc_experiments.config.search_space import (
    Choice,
    Dimension,
    SearchSpace,
    choose,
    read_value,
    search_space,
)
from sgc_experiments.config.types import AUTO, GENERATIVE_MODEL
from sgc_experiments.errors import UserError

# What decides neither on a trial nor on the result that is sought.
_BESIDE_STUDY = (
    "bootstrap",
    "register_model",
    "device",
    "trials",
    "storage",
    "budget",
    "refit_seeds",
    "lost_after",
    "executor",
    "study_workers",
)


class TuneConfig(FitConfig):
    """Search for a better SDE, noise schedule and training of the generative classifier."""

    entry_point: ClassVar[str] = "tune"

    trials: int = Field(
        12, ge=1, le=100000, description="how many trials the study has in the end, pruned or not"
    )
    # With these defaults 12 trials and the refits fit into minutes on two CPU cores.
    budget: str = Field(
        "steps:1000",
        pattern=r"^(steps|images|seconds):[1-9][0-9]*$",
        description="how long to train in a refit: steps:N, images:N or seconds:N",
    )
    validate_every: int = Field(100, ge=1, description="optimiser steps between validations")
    trial_budget: str = Field(
        "steps:500",
        pattern=r"^(steps|images|seconds):[1-9][0-9]*$",
        description="how long to train in a trial, as budget, which is that of the refits",
    )
    objective: Literal["auc", "bits_per_dim", "both"] = Field(
        "auc",
        description="what is sought on the validation patients (both: the Pareto front of "
        "AUC and bits per dimension)",
    )
    pruner: Literal["auto", "median", "hyperband", "none"] = Field(
        AUTO,
        description="how hopeless trials are stopped, by their validation AUC "
        "(auto: median, but none for objective=both)",
    )
    search: str = Field(
        "",
        description="changes to the search space, such as "
        "beta_max=5:20,learning_rate=0.001:0.01:log,weighting=elbo|simple,ema_decay=0.998",
    )
    storage: str = Field(
        AUTO,
        pattern=r"^(auto|sqlite:///.+|postgresql(\+\w+)?://.+)$",
        description="the database of the study, sqlite:///FILE or postgresql://USER@HOST/NAME "
        "(auto: optuna.db beside MLflow's own SQLite file, else in the working folder)",
    )
    executor: Executor = Field(
        "local",
        description="where workers on the study run: in local processes, or by ray on the cluster "
        "at RAY_ADDRESS, or one of this machine",
    )
    study_workers: int = Field(
        1, ge=1, le=256, description="workers that share the study's trials and refits"
    )
    refit_seeds: int = Field(
        2, ge=1, le=100, description="with how many seeds the best configuration is refitted"
    )
    lost_after: int = Field(
        60, ge=3, le=86400, description="seconds without a sign of life until a trial is retried"
    )

    @model_validator(mode="after")
    def _study_is_possible(self) -> TuneConfig:
        if self.folds:
            raise ValueError("tune uses one split: leave folds at 0")
        if self.objective == "both" and self.pruner not in (AUTO, "none"):
            raise ValueError(
                f"pruner={self.pruner} stops trials by one objective: use objective=auc or "
                "objective=bits_per_dim, or pruner=none"
            )
        if self.pretrained or self.weights:
            raise ValueError(f"pretrained and weights are not for {GENERATIVE_MODEL}")
        search_space(self.search, TrainConfig.model_fields)
        return self

    def space(self) -> SearchSpace:
        """What is searched over."""
        return search_space(self.search, TrainConfig.model_fields)

    def defaults(self) -> TrainConfig:
        """The configuration that the search starts from, with the budget of the refits."""
        shared = {name: getattr(self, name) for name in FitConfig.model_fields}
        return TrainConfig(**shared, model=GENERATIVE_MODEL)

    def start(self) -> dict[str, float | int | str]:
        """The defaults as a point of the space, or what is nearest to them in it."""
        defaults = self.defaults()

        def nearest(name: str, dimension: Dimension) -> float | int | str:
            return dimension.nearest(getattr(defaults, name))

        return choose(self.space(), nearest)

    def with_point(self, point: Mapping[str, float | int | str]) -> TrainConfig:
        """The defaults, changed to a point of the space.

        Raises:
            UserError: the values contradict each other.
        """
        fields = TrainConfig.model_fields
        # A fixed parameter has its value in every trial, also where no condition asks for it.
        labels: dict[str, Any] = {
            name: dimension.labels[0]
            for name, dimension in self.space().items()
            if isinstance(dimension, Choice) and len(dimension.labels) == 1
        } | dict(point)
        values = {
            name: read_value(name, value, fields) if isinstance(value, str) else value
            for name, value in labels.items()
        }
        try:
            return TrainConfig(**self.defaults().model_dump() | values)
        except ValidationError as error:
            reasons = (problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            raise UserError(f"The values contradict each other: {'; '.join(reasons)}.") from None

    def of_study(self) -> dict[str, Any]:
        """All that decides on a trial: two commands that agree in it work on one study."""
        space = {name: str(dimension) for name, dimension in self.space().items()}
        return self.deciding(*_BESIDE_STUDY) | {"search": space}


def resolve_tuning(config: TuneConfig, *, gpu: bool) -> TuneConfig:
    """Replace ``auto`` by what suits the dataset, the device and the model that is tuned."""
    config = resolve_defaults(config, gpu=gpu)
    learning_rate = resolve_defaults(config.defaults(), gpu=gpu).learning_rate
    return config.model_copy(update={"learning_rate": learning_rate})
