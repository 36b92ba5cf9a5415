"""From the command line to a validated configuration.

The command line (``--name value``), which ``mlflow run -P name=value`` writes, a YAML file
(``config=FILE``) and environment variables (``SGC_NAME``) all end in the same validated object, in
that order of precedence. A mistake in any of them is told in one sentence.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

from sgc_experiments.choices import choices
from sgc_experiments.errors import UserError


class Config(BaseSettings):
    """What every entry point's configuration shares."""

    model_config = SettingsConfigDict(
        env_prefix="SGC_",
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )
    entry_point: ClassVar[str]


ConfigT = TypeVar("ConfigT", bound=Config)


def parse(config_class: type[ConfigT], arguments: Sequence[str]) -> ConfigT:
    """Turn ``--name value`` arguments into a validated configuration.

    Raises:
        UserError: a name, a value or a combination is wrong; all of them are listed.
        SystemExit: after ``--help``.
    """
    given = _read_arguments(config_class, arguments)
    if file := os.environ.get("SGC_CONFIG"):
        given = {"config": file} | given
    if "config" in given:
        given = _read_yaml(config_class, Path(given["config"])) | given
    try:
        return config_class(**given)
    except ValidationError as error:
        raise UserError(_explain(config_class, error, given)) from None


def _read_arguments(config_class: type[ConfigT], arguments: Sequence[str]) -> dict[str, str]:
    fields = config_class.model_fields
    program = f"python -m sgc_experiments {config_class.entry_point}"
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--name VALUE ...]",
        description=config_class.__doc__,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in fields.items():
        possible = f" ({choices(field)})" if choices(field) else ""
        text = f"{field.description}{possible} [{_default_text(field.default)}]"
        parser.add_argument(f"--{name}", help=text.replace("%", "%%"), metavar="VALUE")
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
    if default is None or default in ("", ()):
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


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
    written_otherwise: set[str] = set()
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        reasons.setdefault(name, []).append(reason.split(", unable to parse")[0])
        given[name] = problem["input"]
        if problem["type"] == "string_pattern_mismatch":  # the help text says how it is written
            written_otherwise.add(name)
    sentences = []
    for name, texts in reasons.items():
        if not name:  # a rule about several parameters names them itself
            sentences += [f"{text}." for text in texts]
            continue
        field = config_class.model_fields[name]
        if field.is_required() and name not in named:
            sentences.append(f"{name} is missing: give {name}={field.description}.")
            continue
        default = _default_text(field.default)
        if name in written_otherwise:
            sentences.append(
                f"{name}={given[name]} is not valid: {name} is {field.description} "
                f"(default {default})."
            )
            continue
        choices = " or ".join(text.removeprefix("should be ") for text in texts)
        sentences.append(
            f"{name}={given[name]} is not valid: it should be {choices} "
            f"({name} is {field.description}; default {default})."
        )
    return "\n".join(sentences)
