"""Progress of long work, with an estimate of what remains: a bar on a terminal, lines in a log."""

import sys
from typing import Any

from tqdm import tqdm

_LINE = "{desc}: {percentage:3.0f} %, {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} to go"
_SECONDS_BETWEEN_LINES = 15.0


def progress_bar(*, total: int, title: str, unit: str, shown: bool = True) -> tqdm:
    """A tqdm bar on standard error; where that is no terminal, a line every 15 seconds.

    Args:
        total: how much there is to do.
        title: what is being done.
        unit: of `total`, in the singular.
        shown: whether to show anything.
    """
    style: dict[str, Any] = {"mininterval": 0.5}
    if not sys.stderr.isatty():
        style = {
            "mininterval": _SECONDS_BETWEEN_LINES,
            "maxinterval": _SECONDS_BETWEEN_LINES,
            "delay": _SECONDS_BETWEEN_LINES,
            "bar_format": _LINE + "{postfix}\n",
        }
    return tqdm(total=total, desc=title, unit=unit, disable=not shown, **style)
