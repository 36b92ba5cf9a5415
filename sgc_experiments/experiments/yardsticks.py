"""Command ``yardsticks``: print how hard a phantom is, by measures that are none of our models."""

from __future__ import annotations

from collections.abc import Sequence

from sgc_experiments.command_line import parse
from sgc_experiments.config import YardsticksConfig
from sgc_experiments.data import generate_phantom
from sgc_experiments.data.phantom.yardsticks import format_yardsticks, yardsticks


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, make the phantom if need be, and print its yardsticks."""
    config = parse(YardsticksConfig, arguments)
    release = config.release or generate_phantom(
        config.cache_dir.expanduser().absolute(),
        config.workers,
        True,
        patients=config.patients,
        seed=config.seed,
        difficulty=config.difficulty,
    )
    print(format_yardsticks(yardsticks(release.expanduser().absolute())))
