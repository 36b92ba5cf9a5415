"""How long a user waits before anything happens.

help_seconds         the slowest `python -m sgc_experiments ENTRY_POINT --help`
overhead_seconds     from the start of `train` and `compare` to the first thing that they find wrong
                     with the data, run opened and configuration logged, minus
                     `python -c "import torch, mlflow"`; the slower of the two

Each command is timed several times in turns, and its fastest time counts: nothing makes a program
start faster than it can.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Result, note, run, seconds
from sgc_experiments.__main__ import ENTRY_POINTS

_ROOT = Path(__file__).parents[1]
_IMPORTS = ["-c", "import torch, mlflow"]


class Size(NamedTuple):
    """How often each command is timed, and whose help."""

    repeats: int
    helped: tuple[str, ...]


QUICK = Size(repeats=1, helped=("train",))
FULL = Size(repeats=5, helped=tuple(ENTRY_POINTS))


def measure(size: Size) -> Result:
    """Time the commands in a fresh folder with an MLflow store that exists already."""
    module = ["-m", "sgc_experiments"]
    commands = {f"{name} --help": [*module, name, "--help"] for name in size.helped}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "empty").mkdir()
        started = {
            "train": [*module, "train", "--dataset", "inbreast", "--data_dir", "empty"],
            "compare": [*module, "compare"],
        }
        commands |= {"imports": _IMPORTS} | started
        _start(["-c", "import mlflow; mlflow.MlflowClient().search_experiments()"], folder)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(size.repeats):
            for name, command in commands.items():
                times[name].append(seconds(lambda command=command: _start(command, folder)))
    best = {name: min(values) for name, values in times.items()}
    for name, value in best.items():
        note(f"{value:6.2f} s  {name}")
    return {
        "help_seconds": max(best[f"{name} --help"] for name in size.helped),
        "overhead_seconds": max(best[name] for name in started) - best["imports"],
    }


def _start(arguments: list[str], folder: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SGC_"))}
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept
        | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "SGC_CACHE_DIR": str(folder / "cache"),
            "PYTHONPATH": str(_ROOT),
        },
        capture_output=True,
        check=False,
    )


if __name__ == "__main__":
    run(__doc__, measure, quick=QUICK, full=FULL)
