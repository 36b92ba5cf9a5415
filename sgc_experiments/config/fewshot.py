"""Parameters of the low-data ablation: which models, on how many patients, how often."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from sgc_experiments.config.fit import Executor, FitConfig, TrainConfig
from sgc_experiments.config.types import AUTO, GENERATIVE_MODEL, Names, split_commas

Size = Annotated[int, Field(ge=4)] | Annotated[float, Field(gt=0, lt=1)] | Literal["all"]
Sizes = Annotated[tuple[Size, ...], NoDecode, BeforeValidator(split_commas)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], NoDecode, BeforeValidator(split_commas)
]
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...], NoDecode, BeforeValidator(split_commas)
]

PRETRAINED = "_pretrained"
TRANSFER = "sgc_transfer"
# A variant differs from a model of `train` by some of its parameters.
VARIANTS: dict[str, dict[str, Any]] = {
    "sgc_plain": {"model": GENERATIVE_MODEL, "hybrid_weight": 0.0},
    "sgc_unlabelled": {"model": GENERATIVE_MODEL, "unlabelled": "rest"},
    TRANSFER: {"model": GENERATIVE_MODEL},  # from the weights that `init_from` names
}
# What every model starts from unless its variant says otherwise.
_UNLESS_VARIED = {
    "pretrained": False,
    "weights": None,
    "unlabelled": None,
    "init_from": "",
}
# The axes of the grid take their place.
_TAKEN_BY_AN_AXIS = {
    "n_patients": "sizes",
    "subset_seed": "seeds",
    "training_prevalence": "prevalence",
    "folds": "seeds",
    "repeats": "seeds",
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "phantom_patients": 120,
        "models": ("sgc", "sgc_plain", "resnet18"),
        "sizes": (0.25, "all"),
        "seeds": (0, 1),
        "budget": "steps:200",
        "validate_every": 50,
        "bootstrap": 500,
    },
}


class FewshotConfig(FitConfig):
    """Fit models on ever fewer patients: how little data is enough, and for which of them?"""

    entry_point: ClassVar[str] = "fewshot_ablation"

    preset: Literal["default", "quick"] = Field(
        "default", description="a set of defaults (quick: a small grid, for a look)"
    )
    models: Names = Field(
        ("sgc", "sgc_plain", "resnet18", "efficientnet_b0"),
        min_length=1,
        description="the models, separated by commas, as for train, and variants of them: "
        + ", ".join(VARIANTS)
        + f", <timm model>{PRETRAINED}",
    )
    reference: str = Field(
        "", description="the model that the others are compared with (none: the first)"
    )
    sizes: Sizes = Field(
        (0.1, 0.2, 0.4, "all"),
        min_length=1,
        description="training sizes: numbers of patients (training and validation together), "
        "fractions of all of them, or all",
    )
    seeds: Seeds = Field(
        (0, 1, 2),
        min_length=1,
        description="seeds; each draws patients, weights, batches and noise anew",
    )
    prevalence: Shares = Field(
        (),
        description="shares of malignant patients to train on, such as 0.05,0.2,0.5 (none: as it "
        "is); each is a grid of its own",
    )
    budget: str = Field(
        "steps:1000",
        pattern=r"^(steps|images|seconds):[1-9][0-9]*$",
        description="how long to train in a cell: steps:N, images:N or seconds:N",
    )
    targets: Shares = Field(
        (0.7, 0.8, 0.9),
        description="values of AUC and average precision whose smallest training size is sought",
    )
    retry_failed: bool = Field(
        False, description="fit again what failed when the same command ran before"
    )
    executor: Executor = Field(
        "local",
        description="where cells are fitted: in local processes, or by ray on the cluster at "
        "RAY_ADDRESS, or one of this machine",
    )
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="cells that are fitted at once, and processes that read images before (0: one "
        "per core, with a GPU: one; on a cluster: as many as it has room for)",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        """What is given wins over the preset, and the preset over the defaults."""
        return PRESETS.get(str(values.get("preset", "default")), {}) | values

    @model_validator(mode="after")
    def _grid_is_sound(self) -> FewshotConfig:
        for name, axis in _TAKEN_BY_AN_AXIS.items():
            if getattr(self, name) != FitConfig.model_fields[name].default:
                raise ValueError(f"{name} belongs to train; here {axis} says it for every cell")
        for name in ("models", "sizes", "seeds", "prevalence"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={','.join(map(str, values))} names something twice")
        if self.reference and self.reference not in self.models:
            raise ValueError(
                f"reference={self.reference} is none of models={','.join(self.models)}"
            )
        if bool(self.init_from) != (TRANSFER in self.models):
            raise ValueError(
                f"init_from and the model {TRANSFER} belong together: give both, with "
                f"dataset=inbreast such as init_from=models:/sgc-vindr_mammo@champion (a model of "
                f"other patients) and {TRANSFER} among models"
            )
        if self.unlabelled is not None:
            raise ValueError(
                "unlabelled belongs to train; here sgc_unlabelled among models says it"
            )
        pretrained = [model for model in self.models if model.endswith(PRETRAINED)]
        if (self.pretrained or self.weights) and not pretrained:
            raise ValueError(
                f"pretrained weights are for a model of the grid: add resnet18{PRETRAINED} to "
                "models"
            )
        if self.weights and len(pretrained) > 1:
            raise ValueError(
                f"weights={self.weights} holds the weights of one model, but models names "
                f"{', '.join(pretrained)}"
            )
        return self

    def of(
        self, model: str, *, n_patients: int | Literal["all"], seed: int, prevalence: float | None
    ) -> TrainConfig:
        """What `train` is told to fit one cell.

        Args:
            model: one of `models`.
            n_patients: training and validation patients.
            seed: of the subset, the weights, the batches and the noise.
            prevalence: share of malignant patients; None: as it is.
        """
        own = set(FewshotConfig.model_fields) - set(FitConfig.model_fields)
        shared = self.model_dump(exclude=own)
        cell = {
            "n_patients": n_patients,
            "subset_seed": seed,
            "seed": seed,
            "training_prevalence": AUTO if prevalence is None else prevalence,
            # The ablation shares out the machine, and registers every cell in one place.
            "workers": 1,
            "register_model": False,
        }
        return TrainConfig(**shared | _UNLESS_VARIED | self._variant(model) | cell)

    def _variant(self, model: str) -> dict[str, Any]:
        if model == TRANSFER:
            return VARIANTS[model] | {"init_from": self.init_from}
        if model in VARIANTS:
            return VARIANTS[model]
        if model.endswith(PRETRAINED):
            name = model.removesuffix(PRETRAINED)
            return {"model": name, "pretrained": self.weights is None, "weights": self.weights}
        return {"model": model}
