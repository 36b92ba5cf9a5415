"""Types that several configurations share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

GENERATIVE_MODEL = "sgc"

Auto = Literal["auto"]
AUTO: Auto = "auto"
Dataset = Literal["phantom", "inbreast", "cbis_ddsm", "vindr_mammo", "table"]


Value = TypeVar("Value")


def settled(value: Value | Auto) -> Value:
    """A parameter of a configuration whose autos are resolved."""
    if value == AUTO:
        raise ValueError("auto has not been resolved")
    return value


def split_commas(value: object) -> object:
    """``"32,64"`` is how a list arrives from a command line."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Channels = Annotated[
    tuple[Annotated[int, Field(ge=4, le=2048)], ...], NoDecode, BeforeValidator(split_commas)
]
# How common the classes are where the images come from.
Prevalence = Annotated[float, Field(gt=0, lt=1)] | Literal["training", "estimate"]
Numbers = Annotated[tuple[float, ...], NoDecode, BeforeValidator(split_commas)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
