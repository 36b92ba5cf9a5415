"""Parameters of comparisons of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from sgc_experiments.command_line import Config
from sgc_experiments.config.types import Names


class CompareConfig(Config):
    """Compare finished runs that were tested on the same patients."""

    entry_point: ClassVar[str] = "compare"

    config: Path | None = Field(None, description="a YAML file of parameters; -P overrides it")
    experiment: str = Field(
        "", description="the name of the experiment whose runs are compared (none: the active one)"
    )
    runs: Names = Field(
        (), description="names or ids of the runs to compare, separated by commas (none: all)"
    )
    split: str = Field(
        "", description="the beginning of the split digest to compare under (none: must be one)"
    )
    reference: str = Field(
        "", description="the model that the others are compared with (none: sgc, else the first)"
    )
    bootstrap: int = Field(
        2000, ge=100, le=100000, description="resamples of patients behind each interval"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the seed of the resamples")
