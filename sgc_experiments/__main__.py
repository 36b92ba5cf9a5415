"""``python -m sgc_experiments <entry point> --name value ...``: what MLproject calls.

Heavy libraries are imported by the entry point that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgc_experiments.errors import Outage, UserError, trace_without_messages
from sgc_experiments.interruption import EXIT_STATUS, stoppable

if TYPE_CHECKING:
    from sgc_experiments.command_line import Config

ENTRY_POINTS = {
    "train": "fit one classifier, evaluate it on test and register it",
    "baseline": "fit several models on the same split and compare them",
    "tune": "search for a better SDE, noise schedule and training",
    "fewshot_ablation": "fit models on ever fewer patients, and draw how their accuracy falls",
    "compare": "compare finished runs that were tested on the same patients",
    "evaluate": "evaluate a registered model on any dataset and subset",
    "predict": "score a folder of images with a registered model",
    "prepare": "index, check, cache and split a dataset, and report on its quality",
    "phantom": "write synthetic mammograms in the layout of a real dataset",
    "yardsticks": "print how hard a phantom is, by measures that are none of our models",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one entry point.

    Returns:
        The exit status: 0 done, 1 failed, 2 a user's mistake, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_overview())
        return 0
    name, *rest = arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with stoppable():
            _run(name, rest)
    except UserError as error:
        if _is_helper():  # the first process tells of it
            return 2
        print(error, file=sys.stderr)
        if not isinstance(error, Outage):
            _record_failure(str(error))
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return EXIT_STATUS
    except Exception as error:
        if os.environ.get("SGC_DEBUG"):
            raise
        trouble = _server_trouble(error)
        if not (trouble and _is_helper()):
            print(trouble or trace_without_messages(error), file=sys.stderr)
        return 2 if trouble else 1
    return 0


def _run(name: str, arguments: Sequence[str]) -> None:
    if name not in ENTRY_POINTS:
        raise UserError(f"There is no entry point {name!r}; choose {', '.join(ENTRY_POINTS)}.")
    config = _check_parameters(name, arguments)
    parameters = config.model_dump()
    if os.environ.get("WORLD_SIZE", "1") != "1" and "processes" not in parameters:
        raise UserError(f"{name} runs in one process: start it without a launcher.")
    if _is_helper():
        importlib.import_module("sgc_experiments.experiments.team").serve(parameters["device"])
        return
    importlib.import_module(f"sgc_experiments.experiments.{name}").main(arguments)


def _is_helper() -> bool:
    """Whether `accelerate launch` or `torchrun` has started this process beside a first one."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def _check_parameters(name: str, arguments: Sequence[str]) -> Config:
    """The configuration; ``--help`` and mistakes are answered before heavy libraries are imported.

    Raises:
        UserError: a parameter is wrong.
        SystemExit: after ``--help``.
    """
    from sgc_experiments.command_line import parse
    from sgc_experiments.experiments import COMMANDS

    return parse(COMMANDS[name], arguments)


def _server_trouble(error: Exception) -> UserError | None:
    """What a request before or after the run tells of the tracking server."""
    if "mlflow" not in sys.modules:
        return None
    from sgc_experiments.delivery import server_trouble

    return server_trouble(error)


def _overview() -> str:
    width = max(map(len, ENTRY_POINTS))
    lines = [f"  {name:<{width}}  {text}" for name, text in ENTRY_POINTS.items()]
    return "\n".join(
        [
            "usage: python -m sgc_experiments <entry point> [--name value ...]",
            "",
            *lines,
            "",
            "python -m sgc_experiments <entry point> --help lists its parameters.",
        ]
    )


def _record_failure(reason: str) -> None:
    """Give the run that `mlflow run` has opened its reason, if the entry point could not."""
    from sgc_experiments import tracking

    tracking.fail_inherited_run(reason)


if __name__ == "__main__":
    sys.exit(main())
