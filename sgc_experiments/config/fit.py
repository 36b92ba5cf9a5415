"""Parameters of fitting: the SDE, the network, the objective, training and evaluation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from sgc_experiments.config.data import DataConfig
from sgc_experiments.config.types import AUTO, GENERATIVE_MODEL, Auto, Channels, Names, Numbers

Processes = Annotated[
    int,
    Field(
        ge=1,
        le=1024,
        description="processes that train each model together, on a GPU each or on the cores of "
        "this machine; without batch normalisation and dropout the result is that of one",
    ),
]


Executor = Literal["local", "ray"]


class FitConfig(DataConfig):
    """How models are fitted and evaluated, whichever they are."""

    config: Path | None = Field(None, description="a YAML file of parameters; -P overrides it")

    sde: Literal["vp", "cosine", "log_snr", "sub_vp", "ve"] = Field(
        "cosine",
        description="the diffusion process (log_snr: variance preserving, by log_snr_knots)",
    )
    beta_min: float = Field(0.1, gt=0, le=100, description="the noise rate at t = 0 (vp, sub_vp)")
    beta_max: float = Field(20.0, gt=0, le=1000, description="the noise rate at t = 1 (vp, sub_vp)")
    sigma_min: float = Field(0.001, gt=0, le=1, description="the smallest noise scale (ve)")
    sigma_max: float = Field(150.0, gt=0, le=1e4, description="the largest noise scale (ve)")
    log_snr_knots: Numbers = Field(
        (14.0, -10.0),
        description="the log-SNR at evenly spaced times from image to noise, linear between "
        "(log_snr), such as 14,3,-3,-10",
    )
    log_snr_shift: Annotated[float, Field(ge=-20, le=20)] | Auto = Field(
        5.0,
        description="what every sde's log-SNR is raised by, towards the detail to be seen (auto: "
        "2 log(64 / image_size), which makes up for resolution alone)",
    )

    channels: Channels = Field(
        (32, 64, 96, 128), description="the network's channels per level, such as 32,64,128,256,512"
    )
    blocks: int = Field(1, ge=1, le=8, description="the residual blocks per level and direction")
    patch: int = Field(
        2, ge=1, le=16, description="the side of the pixel square folded at the stem"
    )
    class_conditioning: Literal["all", "decoder", "head"] = Field(
        "all",
        description="where the class enters (decoder, head: a trunk shared by all classes)",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="the dropout in the network's blocks")
    prediction: Literal["eps", "v", "x0"] = Field("v", description="what the network predicts")
    standardisation: Literal["image", "dataset"] = Field(
        "dataset", description="whose mean and standard deviation the pixels are measured in"
    )
    log_snr_min: float = Field(-4.0, ge=-30, le=30, description="the lowest log-SNR trained on")
    log_snr_max: float = Field(10.0, ge=-30, le=30, description="the highest log-SNR trained on")
    log_snr_sampling: Literal["uniform", "stratified", "importance"] = Field(
        "stratified", description="how noise levels are drawn in training"
    )
    weighting: Literal["simple", "elbo", "min_snr", "sigmoid"] = Field(
        "simple",
        description="the weight of each noise level in the loss (simple: the time that the "
        "diffusion process spends there)",
    )
    hybrid_weight: float = Field(
        0.01,
        ge=0,
        le=100,
        description="the weight of the class cross-entropy beside the denoising (0: without, in "
        "two thirds of the time)",
    )
    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="the share of each label that the cross-entropy of sgc or a timm model spreads "
        "over the classes",
    )
    label_dropout: float = Field(
        0.0, ge=0, lt=1, description="the share of labels hidden to train the null class"
    )
    unlabelled: Literal["rest"] | Path | None = Field(
        None,
        description="images without labels that sgc learns from as well: rest, the patients that "
        "n_patients leaves out, or a folder of image files",
    )
    unlabelled_share: float = Field(
        0.5, gt=0, lt=1, description="the share of unlabelled images in every batch"
    )
    init_from: str = Field(
        "",
        pattern=r"^(models:/[^/@]+(/\d+|@[^/@]+))?$",
        description="a registered model whose weights sgc starts from, models:/NAME@ALIAS",
    )
    evaluations: int = Field(
        32, ge=4, le=4096, description="network evaluations per image over all classes"
    )
    likelihood: Literal["elbo", "ode"] = Field(
        "elbo",
        description="how sgc estimates log p(x|c): the evidence lower bound, in so many "
        "evaluations, or the probability-flow ode, in many more",
    )
    ode_solver: Literal["rk4", "heun", "dopri5"] = Field(
        "rk4",
        description="the solver of the ode: rk4 or heun, in fixed steps, or dopri5, in adaptive "
        "ones, an image at a time",
    )
    ode_steps: int = Field(
        12, ge=1, le=4096, description="the steps of rk4, of four evaluations each, or heun, of two"
    )
    ode_probes: int = Field(
        2, ge=1, le=256, description="the random probes of the ode's divergence (1: no error known)"
    )

    budget: str = Field(
        "steps:2000",
        pattern=r"^(steps|images|seconds):[1-9][0-9]*$",
        description="how long to train: steps:N, images:N or seconds:N",
    )
    batch_size: int = Field(32, ge=2, le=4096, description="images per optimiser step")
    accumulate: int = Field(
        1,
        ge=1,
        le=4096,
        description="parts that a batch is cut into, for the memory of one part",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again on the way back, for less memory"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        AUTO,
        description="the peak learning rate of AdamW "
        "(auto: 0.006 for sgc, 0.001 for a timm model, 0.0003 from pretrained weights)",
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="the weight decay of AdamW")
    ema_decay: float = Field(
        0.998, ge=0, lt=1, description="the decay of the weights' moving average"
    )
    balanced: bool = Field(True, description="draw the classes equally often")
    augment: bool = Field(
        True, description="flip the training images, and change them as the next six say"
    )
    transpose: bool | Auto = Field(
        AUTO,
        description="swap the axes of half of the training images, for all eight symmetries "
        "with the flips (auto: for roi)",
    )
    rotation: float = Field(0.0, ge=0, le=180, description="the largest random turn in degrees")
    scale: float = Field(0.0, ge=0, le=1, description="the largest random relative change of size")
    shift: float = Field(0.0, ge=0, le=1, description="the largest random shift, of the side")
    contrast: float = Field(
        0.0, ge=0, le=1, description="the largest random relative change of contrast"
    )
    brightness: float = Field(
        0.0, ge=0, le=1, description="the largest random change of the mean, range −1 to 1"
    )
    validate_every: int = Field(200, ge=1, description="optimiser steps between validations")
    patience: int = Field(
        0, ge=0, description="validations without gain before training stops (0: use the budget)"
    )
    checkpoint_every: int = Field(200, ge=1, description="optimiser steps between checkpoints")
    device: str = Field(
        AUTO,
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the network runs: auto, cpu, cuda or cuda:1",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        AUTO,
        description="the precision of training (auto: bf16 where the hardware multiplies it)",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="what to do with a batch whose loss is not finite"
    )
    compile: bool = Field(False, description="compile the network; pays for long runs")

    pretrained: bool = Field(False, description="start a timm model from its ImageNet weights")
    weights: Path | None = Field(
        None, description="a file of weights that a timm model starts from (safetensors or .pth)"
    )
    class_weights: bool = Field(
        False,
        description="weigh the classes of a timm model by rarity (needs balanced=false)",
    )
    mixup: float = Field(0.0, ge=0, le=10, description="the strength of a timm model's mixup")
    drop_rate: float = Field(
        0.0, ge=0, lt=1, description="dropout before a timm model's last layer"
    )
    drop_path_rate: float = Field(0.0, ge=0, lt=1, description="a timm model's stochastic depth")

    folds: int = Field(0, ge=0, le=100, description="folds of a cross-validation (0: one split)")
    repeats: int = Field(
        1, ge=1, le=100, description="how often the cross-validation is repeated, with other folds"
    )
    bootstrap: int = Field(
        2000, ge=100, le=100000, description="resamples of patients behind each interval"
    )
    register_model: bool = Field(True, description="put the fitted model into the registry")

    @model_validator(mode="after")
    def _parameters_agree(self) -> FitConfig:
        if self.beta_max <= self.beta_min:
            raise ValueError("beta_max must be larger than beta_min")
        if self.sigma_max <= self.sigma_min:
            raise ValueError("sigma_max must be larger than sigma_min")
        knots = self.log_snr_knots
        if len(knots) < 2 or not all(a > b for a, b in pairwise(knots)):
            raise ValueError("log_snr_knots must be two or more falling numbers, like 14,3,-3,-10")
        if self.log_snr_max <= self.log_snr_min:
            raise ValueError("log_snr_max must be larger than log_snr_min")
        if self.accumulate > self.batch_size:
            raise ValueError("accumulate must not be larger than batch_size")
        if getattr(self, "processes", 1) > self.batch_size:
            raise ValueError("processes must not be more than batch_size, whose images they share")
        if self.class_weights and self.balanced:
            raise ValueError("class_weights=true corrects twice for skew: add balanced=false")
        if self.folds == 1:
            raise ValueError("folds must be 0 (one split) or at least 2")
        if self.repeats > 1 and not self.folds:
            raise ValueError("repeats needs a cross-validation: add folds=5")
        return self


class TrainConfig(FitConfig):
    """Fit one classifier, evaluate it on test and register it."""

    entry_point: ClassVar[str] = "train"

    model: str = Field(
        GENERATIVE_MODEL,
        description="sgc (the score-based generative classifier), any timm model such as resnet18, "
        "logistic_regression or majority",
    )
    processes: Processes = 1

    @model_validator(mode="after")
    def _parameters_are_of_the_model(self) -> TrainConfig:
        for name in _not_of(self.model):
            if getattr(self, name) != FitConfig.model_fields[name].default:
                raise ValueError(f"{name} is not for model={self.model}")
        return self


class BaselineConfig(FitConfig):
    """Fit several models on the same split and compare them."""

    entry_point: ClassVar[str] = "baseline"

    models: Names = Field(
        ("resnet18", "efficientnet_b0"),
        min_length=1,
        description="the models, separated by commas, as for train; the first is the reference",
    )
    processes: Processes = 1

    @model_validator(mode="after")
    def _models_differ(self) -> BaselineConfig:
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models={','.join(self.models)} names a model twice")
        return self

    def of(self, model: str) -> TrainConfig:
        """The configuration of one of the models, with what is for models like it."""
        return TrainConfig(**self.model_dump(exclude={"models", *_not_of(model)}), model=model)


def _not_of(model: str) -> tuple[str, ...]:
    """Parameters that would not change how a model is fitted, though one might expect it."""
    return ("pretrained", "weights") if model == GENERATIVE_MODEL else ("init_from", "unlabelled")


DataConfigT = TypeVar("DataConfigT", bound=DataConfig)


def resolve_defaults(config: DataConfigT, *, gpu: bool) -> DataConfigT:
    """Replace ``auto`` by what suits the dataset and the device."""
    changes: dict[str, Any] = {
        "cache_dir": config.cache_dir.expanduser().absolute(),
        "data_dir": config.data_dir.expanduser().absolute(),
    }
    if config.table:
        changes["table"] = config.table.expanduser().absolute()
    if config.input == AUTO:
        changes["input"] = "roi" if config.dataset == "phantom" else "whole"
    kind = changes.get("input", config.input)
    if config.image_size == AUTO:
        changes["image_size"] = {"roi": 32, "whole": 384 if gpu else 96}[kind]
    if isinstance(config, FitConfig) and config.transpose == AUTO:
        changes["transpose"] = kind == "roi"
    if isinstance(config, FitConfig) and config.log_snr_shift == AUTO:
        # Help texts are wanted in less time than torch takes to import.
        from sgc_experiments.sde import resolution_log_snr_shift

        side = changes.get("image_size", config.image_size)
        changes["log_snr_shift"] = resolution_log_snr_shift(side)
    if isinstance(config, TrainConfig) and config.learning_rate == AUTO:
        changes["learning_rate"] = _learning_rate(config)
    return config.model_copy(update=changes)


# What a run's name says anyway, and what does not change its result.
_NO_DEPARTURE = frozenset(
    {
        *("dataset", "model", "input", "image_size", "seed", "folds"),
        *("data_dir", "table", "classes", "cache_dir", "config", "workers", "device", "processes"),
        *("validate_every", "bootstrap", "register_model"),
    }
)


def departures(config: TrainConfig) -> dict[str, Any]:
    """The parameters of a resolved configuration that tell it from the default one."""
    fields = type(config).model_fields
    autos = {name for name, field in fields.items() if field.default == AUTO} - _NO_DEPARTURE
    resolved = resolve_defaults(config.model_copy(update=dict.fromkeys(autos, AUTO)), gpu=False)
    usual = {
        name: getattr(resolved, name) if name in autos else field.default
        for name, field in fields.items()
    }
    return {
        name: value for name, value in config if name not in _NO_DEPARTURE and value != usual[name]
    }


def _learning_rate(config: TrainConfig) -> float:
    if config.model == GENERATIVE_MODEL:
        return 6e-3
    return 3e-4 if config.pretrained or config.weights else 1e-3
