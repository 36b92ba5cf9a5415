"""Every parameter of every entry point: its name, type, bounds, default and help text, once.

The command line (``--name value``), ``mlflow run -P name=value``, environment variables
(``SGC_NAME``) and a YAML file (``config=FILE``) all end in the same validated object, in that order
of precedence. The resolved object is logged with the run under the prefix ``config.``.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

from sgc_experiments.errors import UserError

GENERATIVE_MODEL = "sgc"
AUTO = "auto"
DATASETS = ("phantom", "inbreast", "cbis_ddsm", "vindr_mammo")

Auto = Literal["auto"]
Dataset = Literal["phantom", "inbreast", "cbis_ddsm", "vindr_mammo"]


def _split_commas(value: object) -> object:
    """``"32,64"`` is how a list arrives from a command line."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Channels = Annotated[
    tuple[Annotated[int, Field(ge=4, le=2048)], ...], BeforeValidator(_split_commas)
]


class Config(BaseSettings):
    """What every entry point's configuration shares."""

    model_config = SettingsConfigDict(
        env_prefix="SGC_",
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )
    entry_point: ClassVar[str]


class DataConfig(Config):
    """Which images, how they are prepared, and who is in which subset."""

    dataset: Dataset = Field("phantom", description="the dataset; the phantom needs no download")
    data_dir: Path = Field(Path("data"), description="the folder that holds the dataset")
    cache_dir: Path = Field(
        Path("~/.cache/sgc_experiments"),
        description="the folder for prepared images, the phantom and checkpoints",
    )
    input: Literal["auto", "whole", "roi"] = Field(
        AUTO,
        description="whole images, or roi: a crop around each image's lesion "
        "(auto: roi for the phantom, whole for the real datasets)",
    )
    image_size: Annotated[int, Field(ge=16, le=1024, multiple_of=8)] | Auto = Field(
        AUTO,
        description="the side of the prepared image in pixels, a multiple of 8 from 16 to 1024",
    )
    clahe: bool = Field(False, description="contrast-limited adaptive histogram equalisation")
    birads3: Literal["benign", "drop"] = Field(
        "benign", description="what INbreast images of BI-RADS 3 count as"
    )
    abnormality: Literal["all", "mass", "calc"] = Field(
        "all", description="which CBIS-DDSM abnormalities to read"
    )
    on_leak: Literal["drop_test", "drop_train", "error"] = Field(
        "drop_test",
        description="what to do with CBIS-DDSM patients who are in both official subsets",
    )
    phantom_patients: int = Field(
        320, ge=20, le=20000, description="the number of patients in the phantom"
    )
    phantom_seed: int = Field(0, ge=0, lt=2**31, description="the seed of the phantom's images")
    difficulty: Literal["standard", "hard"] = Field(
        "standard", description="the phantom's difficulty (hard: physical contrast, calcifications)"
    )
    validation_fraction: float = Field(
        0.15, gt=0, lt=0.9, description="the share of patients kept for validation"
    )
    test_fraction: float = Field(
        0.25,
        gt=0,
        lt=0.9,
        description="the share of test patients where there is no official split",
    )
    n_patients: Annotated[int, Field(ge=4)] | Literal["all"] = Field(
        "all", description="how many training and validation patients to use, or all"
    )
    workers: int = Field(0, ge=0, le=256, description="processes that read images (0: all cores)")
    split_seed: int = Field(0, ge=0, lt=2**31, description="the seed of the split by patients")
    seed: int = Field(
        0, ge=0, lt=2**31, description="the seed of all else: weights, batches, noise"
    )

    @model_validator(mode="after")
    def _fractions_leave_training_patients(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 0.95:
            raise ValueError(
                "validation_fraction and test_fraction together leave less than 5 % of the "
                "patients for training"
            )
        return self


class PrepareConfig(DataConfig):
    """Index, check, prepare, cache and split a dataset, and report on its quality."""

    entry_point: ClassVar[str] = "prepare"

    config: Path | None = Field(None, description="a YAML file of parameters; -P overrides it")
    examples: int = Field(
        3, ge=0, le=20, description="images of each class whose preparation is shown step by step"
    )


class TrainConfig(DataConfig):
    """Fit one classifier, evaluate it on test and register it."""

    entry_point: ClassVar[str] = "train"

    config: Path | None = Field(None, description="a YAML file of parameters; -P overrides it")
    model: str = Field(GENERATIVE_MODEL, description="sgc, the score-based generative classifier")

    sde: Literal["vp", "cosine", "sub_vp", "ve"] = Field("vp", description="the diffusion process")
    beta_min: float = Field(0.1, gt=0, le=100, description="the noise rate at t = 0 (vp, sub_vp)")
    beta_max: float = Field(20.0, gt=0, le=1000, description="the noise rate at t = 1 (vp, sub_vp)")
    sigma_min: float = Field(0.001, gt=0, le=1, description="the smallest noise scale (ve)")
    sigma_max: float = Field(150.0, gt=0, le=1e4, description="the largest noise scale (ve)")
    log_snr_shift: float = Field(
        0.0, ge=-20, le=20, description="a shift of the log-SNR, for large images"
    )

    channels: Channels = Field(
        (32, 64, 128), description="the network's channels per level, such as 32,64,128,256,512"
    )
    blocks: int = Field(1, ge=1, le=8, description="the residual blocks per level and direction")
    patch: int = Field(
        2, ge=1, le=16, description="the side of the pixel square folded at the stem"
    )
    class_conditioning: Literal["all", "decoder"] = Field(
        "all", description="where the class enters (decoder: a trunk shared by all classes)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="the dropout in the network's blocks")
    prediction: Literal["eps", "v", "x0"] = Field("v", description="what the network predicts")
    log_snr_min: float = Field(-4.0, ge=-30, le=30, description="the lowest log-SNR trained on")
    log_snr_max: float = Field(10.0, ge=-30, le=30, description="the highest log-SNR trained on")
    log_snr_sampling: Literal["uniform", "stratified", "importance"] = Field(
        "stratified", description="how noise levels are drawn in training"
    )
    weighting: Literal["simple", "elbo", "min_snr", "sigmoid"] = Field(
        "elbo", description="the weight of each noise level in the loss"
    )
    hybrid_weight: float = Field(
        0.0, ge=0, le=100, description="the weight of the class cross-entropy beside the denoising"
    )
    label_dropout: float = Field(
        0.0, ge=0, lt=1, description="the share of labels hidden to train the null class"
    )
    evaluations: int = Field(
        16, ge=4, le=4096, description="network evaluations per image over all classes"
    )

    budget: str = Field(
        "steps:800",
        pattern=r"^(steps|images|seconds):[1-9][0-9]*$",
        description="how long to train: steps:N, images:N or seconds:N",
    )
    batch_size: int = Field(32, ge=2, le=4096, description="images per optimiser step")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="the peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, le=1, description="the weight decay of AdamW")
    ema_decay: float = Field(
        0.998, ge=0, lt=1, description="the decay of the weights' moving average"
    )
    balanced: bool = Field(True, description="draw the classes equally often")
    augment: bool = Field(True, description="flip, rotate and vary the training images")
    validate_every: int = Field(100, ge=1, description="optimiser steps between validations")
    patience: int = Field(
        0, ge=0, description="validations without gain before training stops (0: use the budget)"
    )
    device: str = Field(
        AUTO,
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="where the network runs: auto, cpu, cuda, cuda:1 or mps",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        AUTO, description="the precision of the network (auto: bf16 on a GPU that has it)"
    )
    compile: bool = Field(False, description="compile the network; pays for long runs")
    bootstrap: int = Field(
        2000, ge=100, le=100000, description="resamples of patients behind each interval"
    )
    register_model: bool = Field(True, description="put the fitted model into the registry")

    @model_validator(mode="after")
    def _noise_grows(self) -> TrainConfig:
        if self.beta_max <= self.beta_min:
            raise ValueError("beta_max must be larger than beta_min")
        if self.sigma_max <= self.sigma_min:
            raise ValueError("sigma_max must be larger than sigma_min")
        if self.log_snr_max <= self.log_snr_min:
            raise ValueError("log_snr_max must be larger than log_snr_min")
        return self


class PhantomConfig(Config):
    """Write synthetic mammograms in the layout of a real dataset."""

    entry_point: ClassVar[str] = "phantom"

    out: Path = Field(description="the folder to write; it must not exist yet")
    layout: Literal["inbreast", "cbis_ddsm", "vindr_mammo"] = Field(
        "inbreast", description="whose files to imitate"
    )
    style: Literal["classic", "descriptive", "nbia", "newer", "kaggle_jpeg"] = Field(
        "classic", description="which of CBIS-DDSM's folder layouts"
    )
    syntax: Literal["native", "rle", "jpegls", "j2k"] = Field(
        "native", description="the DICOM transfer syntax"
    )
    patients: int = Field(40, ge=1, le=20000, description="the number of patients")
    seed: int = Field(0, ge=0, lt=2**31, description="the seed; same seed, same bytes")
    difficulty: Literal["standard", "hard"] = Field(
        "standard", description="how visible the signs of malignancy are"
    )
    workers: int = Field(0, ge=0, le=256, description="processes that render (0: all cores)")


ConfigT = TypeVar("ConfigT", bound=Config)
DataConfigT = TypeVar("DataConfigT", bound=DataConfig)


def parse(config_class: type[ConfigT], arguments: Sequence[str]) -> ConfigT:
    """Turn ``--name value`` arguments into a validated configuration.

    Raises:
        UserError: a name, a value or a combination is wrong; all of them are listed.
        SystemExit: after ``--help``.
    """
    given = _read_arguments(config_class, arguments)
    if "config" in given:
        given = _read_yaml(config_class, Path(given["config"])) | given
    try:
        return config_class(**given)
    except ValidationError as error:
        raise UserError(_explain(config_class, error, given)) from None


def _read_arguments(config_class: type[ConfigT], arguments: Sequence[str]) -> dict[str, str]:
    fields = config_class.model_fields
    parser = argparse.ArgumentParser(
        prog=f"python -m sgc_experiments {config_class.entry_point}",
        description=config_class.__doc__,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in fields.items():
        text = f"{field.description} [{_default_text(field.default)}]".replace("%", "%%")
        parser.add_argument(f"--{name}", help=text, metavar="VALUE")
    names = [a.removeprefix("--").split("=")[0] for a in arguments if a.startswith("--")]
    _check_names(config_class, [name for name in names if name != "help"], "the command line")
    try:
        known, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"The command line could not be read: {error}.") from None
    if rest:
        raise UserError(
            f"The command line holds {rest[0]!r}, which belongs to no parameter; write "
            "-P name=value after `mlflow run`, or --name value."
        )
    return vars(known)


def _default_text(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "none" if default is None else str(default)


def _read_yaml(config_class: type[ConfigT], path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"config={path} could not be read ({error.strerror}); give the path of a YAML file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(
            f"config={path} is not a YAML file; write one `name: value` a line."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"config={path} holds no parameters; write one `name: value` a line.")
    _check_names(config_class, [str(name) for name in content], str(path))
    return content


def _check_names(config_class: type[ConfigT], names: Sequence[str], where: str) -> None:
    known = list(config_class.model_fields)
    for name in names:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help for the list."
        raise UserError(
            f"There is no parameter named {name!r} for {config_class.entry_point} "
            f"(in {where}): {hint}"
        )


def _explain(config_class: type[ConfigT], error: ValidationError, named: Container[str]) -> str:
    """One sentence per wrong parameter, without the validation library's own vocabulary."""
    reasons: dict[str, list[str]] = {}
    given: dict[str, object] = {}
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        reasons.setdefault(name, []).append(reason.split(", unable to parse")[0])
        given[name] = problem["input"]
    sentences = []
    for name, texts in reasons.items():
        if not name:  # a rule about several parameters names them itself
            sentences += [f"{text}." for text in texts]
            continue
        field = config_class.model_fields[name]
        if field.is_required() and name not in named:
            sentences.append(f"{name} is missing: give {name}={field.description}.")
            continue
        choices = " or ".join(text.removeprefix("should be ") for text in texts)
        sentences.append(
            f"{name}={given[name]} is not valid: it should be {choices} "
            f"({name} is {field.description}; default {_default_text(field.default)})."
        )
    return "\n".join(sentences)


def resolve_defaults(config: DataConfigT, *, gpu: bool) -> DataConfigT:
    """Replace ``auto`` by what suits the dataset and the device."""
    changes: dict[str, Any] = {
        "cache_dir": config.cache_dir.expanduser().absolute(),
        "data_dir": config.data_dir.expanduser().absolute(),
    }
    if config.input == AUTO:
        changes["input"] = "roi" if config.dataset == "phantom" else "whole"
    kind = changes.get("input", config.input)
    if config.image_size == AUTO:
        changes["image_size"] = {"roi": 48, "whole": 384 if gpu else 96}[kind]
    return config.model_copy(update=changes)
