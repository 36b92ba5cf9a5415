"""A model on disk: weights as safetensors, all else as JSON. Nothing is ever unpickled."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sgc_experiments.checkpoint import write_atomically
from sgc_experiments.errors import UserError

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
# What reading a file that is cut, foreign or of another version raises.
_DAMAGE = (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError)


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    write_atomically(folder / _WEIGHTS, save(plain))
    write_atomically(folder / _CONFIG, json.dumps(config, indent=2).encode())


def read_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_model` wrote.

    Raises:
        UserError: The model is of another kind.
        Exception: The files are not sound; see `sound_model`.
    """
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if config["kind"] != kind:
        raise UserError(f"{folder.name} holds a model of kind {config['kind']!r}.")
    return config, load_file(folder / _WEIGHTS)


@contextmanager
def sound_model(folder: Path) -> Iterator[None]:
    """Making a model of what is read: says what the files' damage, or their age, comes to.

    Raises:
        UserError: The folder holds no sound model.
    """
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"{folder.name} holds no sound model of this version ({type(error).__name__}): "
            "save or download it again."
        ) from error
