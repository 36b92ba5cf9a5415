"""What ``tune`` searches over, beside the configuration whose parameters these are.

A dimension with a condition is part of a trial only where its parent is and has one of the values
named. The SDE decides on the training only through the weights "simple" and "min_snr", which are
told in its time; "elbo" and "sigmoid" are functions of the log-SNR (see ``objective``).

``search=`` narrows, widens, fixes or adds dimensions, separated by commas:

    name=low:high          a range, uniform
    name=low:high:log      a range, uniform in the logarithm
    name=a|b|c             a choice
    name=a                 fixed

Channels are written with hyphens: ``channels=32-64-96|48-96-144``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sgc_experiments.config.types import AUTO

Condition = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    when: Condition | None = None

    def nearest(self, value: float) -> float:
        """The number of the range that is closest to `value`."""
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """Values as they are written in ``search=``."""

    labels: tuple[str, ...]
    when: Condition | None = None

    def nearest(self, value: Any) -> str:
        """The label of `value`, or the first label if there is none."""
        label = as_label(value)
        return label if label in self.labels else self.labels[0]

    def __str__(self) -> str:
        return "|".join(self.labels)


Dimension = Range | Choice
SearchSpace = dict[str, Dimension]

_IN_TIME = ("weighting", ("simple", "min_snr"))
# Parents stand before their children.
SEARCH_SPACE: SearchSpace = {
    "weighting": Choice(("elbo", "simple", "min_snr", "sigmoid")),
    "sde": Choice(("vp", "cosine", "sub_vp", "ve"), when=_IN_TIME),
    "beta_min": Range(0.01, 1.0, log=True, when=("sde", ("vp", "sub_vp"))),
    "beta_max": Range(5.0, 40.0, when=("sde", ("vp", "sub_vp"))),
    "sigma_max": Range(10.0, 500.0, log=True, when=("sde", ("ve",))),
    "log_snr_shift": Range(0.0, 8.0, when=("sde", ("cosine",))),
    "log_snr_min": Range(-8.0, -2.0),
    "log_snr_max": Range(6.0, 14.0),
    "log_snr_sampling": Choice(("uniform", "stratified", "importance")),
    "channels": Choice(("24-48-72-96", "32-64-96-128", "48-96-144-192")),
    "learning_rate": Range(1e-3, 1.5e-2, log=True),
    "ema_decay": Choice(("0.99", "0.995", "0.998", "0.999")),
    "hybrid_weight": Choice(("0", "0.003", "0.01", "0.03")),
    "evaluations": Choice(("16", "32", "64")),
}
# What may be added to a search.
TUNABLE = (
    *SEARCH_SPACE,
    "sigma_min",
    "blocks",
    "patch",
    "class_conditioning",
    "dropout",
    "prediction",
    "label_smoothing",
    "label_dropout",
    "batch_size",
    "weight_decay",
    "balanced",
    "augment",
)


def as_label(value: Any) -> str:
    """How a value of a parameter is written in ``search=``."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_value(name: str, label: str, fields: Mapping[str, FieldInfo]) -> Any:
    """The value of a parameter from its label.

    Raises:
        ValueError: it is out of the parameter's bounds, or "auto"; the message names both.
    """
    if label == AUTO:  # what it stands for is settled before a search
        raise ValueError(f"search: {name}=auto is no value to try; write a number or low:high")
    field = fields[name]
    text = label.replace("-", ",") if name == "channels" else label
    try:
        bounded: Any = Annotated[field.annotation, field]
        return TypeAdapter(bounded).validate_python(text)
    except ValidationError as error:
        reasons = (problem["msg"].removeprefix("Input ") for problem in error.errors())
        raise ValueError(
            f"search: {name}={label} is out of bounds: it {' or '.join(dict.fromkeys(reasons))} "
            f"({name} is {field.description})"
        ) from None


def search_space(text: str, fields: Mapping[str, FieldInfo]) -> SearchSpace:
    """The declared space, changed by what ``search=`` says.

    Args:
        text: the value of ``search=``; "" leaves the space as declared.
        fields: the parameters of the configuration that is tuned.

    Raises:
        ValueError: a name, a value or the writing is wrong; the message names the parameter.
    """
    space = dict(SEARCH_SPACE)
    given: set[str] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(
                f"search: {part!r} is not understood; write name=low:high, name=low:high:log, "
                "name=a|b or name=a, separated by commas (channels as 32-64-128)"
            )
        if name not in TUNABLE:
            close = difflib.get_close_matches(name, TUNABLE, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"search: there is no parameter {name!r} to tune; {hint}"
                f"there are {', '.join(TUNABLE)}"
            )
        if name in given:
            raise ValueError(f"search: {name} is given twice")
        given.add(name)
        dimension = _read_dimension(name, value, fields)
        declared = SEARCH_SPACE.get(name)
        space[name] = dataclasses.replace(dimension, when=declared.when if declared else None)
    _check_that_all_can_apply(space, given)
    return space


def _check_that_all_can_apply(space: SearchSpace, given: set[str]) -> None:
    """Refuse to search over what no trial would have; what is fixed need not apply."""
    possible: dict[str, tuple[str, ...]] = {}
    for name, dimension in space.items():
        labels = dimension.labels if isinstance(dimension, Choice) else ()
        parent, values = dimension.when or ("", ())
        if not parent or set(values) & set(possible.get(parent, ())):
            possible[name] = labels
        elif name in given and len(labels) != 1:
            raise ValueError(
                f"search: {name} decides on nothing unless {parent} is {' or '.join(values)}: "
                f"add {parent}={'|'.join(values)}"
            )


def _read_dimension(name: str, text: str, fields: Mapping[str, FieldInfo]) -> Dimension:
    if ":" not in text:
        labels = tuple(dict.fromkeys(label.strip() for label in text.split("|")))
        # Read and written again, so that 0.10 and 0.1 are one label.
        return Choice(tuple(as_label(read_value(name, label, fields)) for label in labels))
    low_text, high_text, *scale = (piece.strip() for piece in text.split(":"))
    low, high = (read_value(name, piece, fields) for piece in (low_text, high_text))
    if any(isinstance(end, str | bool | tuple) for end in (low, high)):
        raise ValueError(f"search: {name} is no number and has no range; write {name}=a|b")
    if scale not in ([], ["log"]):
        raise ValueError(f"search: {name}={text} is not understood; write {name}=low:high:log")
    if not low < high:
        raise ValueError(f"search: {name}={text} is empty: {high_text} is not above {low_text}")
    if scale and low <= 0:
        raise ValueError(f"search: {name}={text}: a logarithmic range must begin above 0")
    return Range(low, high, log=bool(scale), whole=isinstance(low, int))


def choose(
    space: SearchSpace, pick: Callable[[str, Dimension], float | int | str]
) -> dict[str, float | int | str]:
    """Pick a value or label of every dimension that applies, parents first."""
    chosen: dict[str, float | int | str] = {}
    for name, dimension in space.items():
        if dimension.when is None or chosen.get(dimension.when[0]) in dimension.when[1]:
            chosen[name] = pick(name, dimension)
    return chosen
