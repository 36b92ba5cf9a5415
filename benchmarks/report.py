"""How a benchmark is called and how it answers."""

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch

Size = TypeVar("Size")
Result = dict[str, float | bool | None]


def run(description: str, measure: Callable[[Size], Result], *, quick: Size, full: Size) -> None:
    """Measure at one of two sizes and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take at most a minute")
    size = quick if parser.parse_args().quick else full
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    print(json_line(measure(size)))


def json_line(result: Result) -> str:
    """The result in one line, to four digits; what is not a finite number is null."""
    return json.dumps({name: _rounded(value) for name, value in result.items()})


def _rounded(value: float | bool | None) -> float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def note(text: str) -> None:
    """Print a line for people, at once."""
    print(text, flush=True)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
