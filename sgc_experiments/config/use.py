"""Parameters of using a fitted model: evaluating it, and scoring images with it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sgc_experiments.command_line import Config
from sgc_experiments.config.data import DataConfig
from sgc_experiments.config.types import AUTO, Auto, Dataset, Prevalence


class EvaluateConfig(DataConfig):
    """Evaluate a registered model on a dataset and a split."""

    entry_point: ClassVar[str] = "evaluate"

    config: Path | None = Field(None, description="a YAML file of parameters; -P overrides it")
    model_uri: str = Field(
        description="the model, such as models:/sgc-phantom@champion or models:/sgc-phantom/1"
    )
    # Resolved to one of the others before anything reads it.
    dataset: Dataset | Auto = Field(  # type: ignore[assignment]
        AUTO,
        description="the dataset (auto: the one that the model was fitted on, with the same reader "
        "options and split, unless they are given)",
    )
    subset: Literal["test", "validation", "train", "all"] = Field(
        "test",
        description="the images to evaluate on; patients whom the model has seen are left out",
    )
    prevalence: Prevalence = Field(
        "training",
        description="the prevalence that the probabilities hold for: training, estimate (from the "
        "images evaluated on, without their labels), or the share of the second of two classes",
    )
    likelihood: Literal["auto", "elbo", "ode"] = Field(
        AUTO,
        description="how sgc estimates log p(x|c) (auto: as in training; otherwise it is "
        "calibrated anew on the validation patients of training)",
    )
    bootstrap: int = Field(
        2000, ge=100, le=100000, description="resamples of patients behind each interval"
    )
    device: str = Field(
        AUTO,
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the network runs: auto, cpu, cuda or cuda:1",
    )


class PredictConfig(Config):
    """Score a folder of images with a registered model."""

    entry_point: ClassVar[str] = "predict"

    config: Path | None = Field(None, description="a YAML file of parameters; -P overrides it")
    model_uri: str = Field(
        description="the model, such as models:/sgc-phantom@champion or models:/sgc-phantom/1"
    )
    images: Path = Field(
        description="the folder of DICOM, JPEG, PNG, TIFF and NPY files, at any depth"
    )
    out: Path = Field(
        Path("predictions.csv"), description="the CSV file to write, a row for each image"
    )
    boxes: str = Field(
        "",
        description="for a model of lesion crops, a CSV file with the columns path, x0, y0, x1, y1 "
        "(pixels), or full: every image is a crop already",
    )
    prevalence: Prevalence = Field(
        "training",
        description="the prevalence that the probabilities hold for: training, estimate (from all "
        "the images of the folder), or the share of the second of two classes",
    )
    workers: int = Field(0, ge=0, le=256, description="processes that read images (0: all cores)")
    seed: int = Field(0, ge=0, lt=2**31, description="the seed of a generative model's noise")
    device: str = Field(
        AUTO,
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the network runs: auto, cpu, cuda or cuda:1",
    )

    @model_validator(mode="after")
    def _out_is_a_table(self) -> PredictConfig:
        if self.out.suffix.lower() != ".csv":
            raise ValueError("out must be the name of a CSV file, such as out=predictions.csv")
        return self
