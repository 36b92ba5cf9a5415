"""What may be written for a parameter, read from its declaration: names, and numbers in bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_KINDS = {int: "a whole number", float: "a number", Path: "a path"}
_BOUNDS = {
    "ge": "from", "gt": "from above", "le": "to", "lt": "to below", "multiple_of": "in steps of",
}  # fmt: skip


def choices(field: FieldInfo) -> str:
    """Say what a parameter takes, such as "a number from 0 to 1 or auto".

    Returns:
        Nothing for texts, whose description says how they are written.
    """
    several = get_origin(field.annotation) is tuple
    kind = get_args(field.annotation)[0] if several else field.annotation
    *most, last = [*_alternatives(kind, [] if several else field.metadata)] or [""]
    told = f"{', '.join(most)} or {last}" if most else last
    return f"each {told}" if several and told else told


def _alternatives(kind: Any, metadata: Sequence[Any]) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _alternatives(arguments[0], _flat(arguments[1:]))
    elif origin in (Union, UnionType):
        for part in arguments:
            yield from _alternatives(part, metadata)
    elif origin is Literal:
        yield from arguments
    elif kind is bool:
        yield from ("true", "false")
    elif kind in _KINDS:
        yield _KINDS[kind] + _bounds(metadata)


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """With what a ``Field`` inside an annotation holds in its place."""
    parts = (one.metadata if isinstance(one, FieldInfo) else [one] for one in metadata)
    return [part for several in parts for part in several]


def _bounds(metadata: Sequence[Any]) -> str:
    return "".join(
        f" {words} {value:.10g}"
        for name, words in _BOUNDS.items()
        for part in metadata
        if (value := getattr(part, name, None)) is not None
    )
