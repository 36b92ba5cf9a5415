"""``python -m sgc_experiments <entry point> --name value ...``: what MLproject calls.

Heavy libraries are imported by the entry point that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from sgc_experiments.errors import Outage, UserError
from sgc_experiments.interruption import EXIT_STATUS, stoppable

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
        print(_trace_without_messages(error), file=sys.stderr)
        return 1
    return 0


def _run(name: str, arguments: Sequence[str]) -> None:
    if name not in ENTRY_POINTS:
        raise UserError(f"There is no entry point {name!r}; choose {', '.join(ENTRY_POINTS)}.")
    _check_parameters(name, arguments)
    importlib.import_module(f"sgc_experiments.experiments.{name}").main(arguments)


def _trace_without_messages(error: BaseException) -> str:
    """What failed and where. The message of a foreign exception can quote a header or a table."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    return "\n".join(
        [
            "Internal error, from the first cause to what came of it:",
            *(
                f"{''.join(traceback.format_tb(link.__traceback__))}{type(link).__name__}"
                for link in reversed(chain)
            ),
            "Messages are left out, since they can quote patients' data; SGC_DEBUG=1 shows them.",
        ]
    )


def _check_parameters(name: str, arguments: Sequence[str]) -> None:
    """Answer ``--help`` and tell mistakes before the entry point's libraries are imported.

    Raises:
        UserError: a parameter is wrong.
        SystemExit: after ``--help``.
    """
    from sgc_experiments.command_line import parse
    from sgc_experiments.experiments import COMMANDS

    parse(COMMANDS[name], arguments)


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
