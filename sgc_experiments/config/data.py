"""Parameters of the data: which images, how they are prepared, who is in which subset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from sgc_experiments.command_line import Config
from sgc_experiments.config.types import AUTO, Auto, Dataset, Names

# Where things lie, and how many work on them.
_BESIDE_THE_NUMBERS = ("data_dir", "table", "cache_dir", "config", "workers", "processes")


class DataConfig(Config):
    """Which images, how they are prepared, and who is in which subset."""

    dataset: Dataset = Field(
        "phantom", description="the dataset; the phantom needs no download, table is your own data"
    )
    data_dir: Path = Field(Path("data"), description="the folder that holds the dataset")
    table: Path | None = Field(
        None,
        description="for dataset=table, a CSV file with the columns path, patient and label; the "
        "images lie in its folder or below",
    )
    classes: Names = Field(
        (),
        description="for dataset=table, the names of the classes in order, the positive one last "
        "(none: numbers by size, names by the alphabet)",
    )
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
        description="the side of the prepared image in pixels (for sgc with the usual channels and "
        "patch a multiple of 16)",
    )
    clahe: bool = Field(False, description="contrast-limited adaptive histogram equalisation")
    birads3: Literal["benign", "drop"] = Field(
        "benign", description="what INbreast images of BI-RADS 3 count as"
    )
    abnormality: Literal["all", "mass", "calc"] = Field(
        "all",
        description="which CBIS-DDSM abnormalities to show; for the label all of them count",
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
        "all", description="how many training and validation patients to use"
    )
    training_prevalence: Annotated[float, Field(gt=0, lt=1)] | Auto = Field(
        AUTO,
        description="the share of malignant patients among those used (auto: as it is)",
    )
    workers: int = Field(0, ge=0, le=256, description="processes that read images (0: all cores)")
    split_seed: int = Field(0, ge=0, lt=2**31, description="the seed of the split by patients")
    subset_seed: int = Field(
        0, ge=0, lt=2**31, description="the seed that decides who is among n_patients"
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="the seed of all else: weights, batches, noise"
    )

    def deciding(self, *beside: str) -> dict[str, Any]:
        """What decides on the numbers of a run, JSON-able.

        Left out are where things lie, how many work on them, and the parameters `beside`.
        """
        return self.model_dump(mode="json", exclude={*_BESIDE_THE_NUMBERS, *beside})

    @model_validator(mode="after")
    def _table_belongs_to_its_dataset(self) -> DataConfig:
        if self.dataset == "table" and self.table is None:
            raise ValueError("dataset=table needs a table: add table=images.csv")
        for name in ("table", "classes"):
            if self.dataset != "table" and getattr(self, name):
                raise ValueError(f"{name} belongs to your own data: add dataset=table")
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must name two or more different classes")
        return self

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


class YardsticksConfig(Config):
    """Print how hard a phantom is, by measures that are none of our models."""

    entry_point: ClassVar[str] = "yardsticks"

    release: Path | None = Field(
        None, description="a phantom's folder, in INbreast's layout (none: one is made)"
    )
    patients: int = Field(320, ge=20, le=20000, description="the number of patients, if it is made")
    seed: int = Field(0, ge=0, lt=2**31, description="the seed of its images, if it is made")
    difficulty: Literal["standard", "hard"] = Field(
        "standard", description="how visible the signs of malignancy are, if it is made"
    )
    cache_dir: Path = Field(
        Path("~/.cache/sgc_experiments"), description="the folder where it is made"
    )
    workers: int = Field(0, ge=0, le=256, description="processes that render (0: all cores)")
