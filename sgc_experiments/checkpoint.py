"""Checkpoints that survive a kill: one safetensors file, named after the hash of its content.

A file is written under a temporary name, flushed to disk and renamed, so that it is there whole or
not at all. Its name holds the SHA-256 of its bytes; a file that does not match is passed over in
favour of the one before. Tensors and a JSON header, nothing is ever unpickled.
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sgc_experiments.errors import Outage

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d{9})-([0-9a-f]{32})\.safetensors")
_KEPT = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk has no room for halves
        raise


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write the checkpoint of a step and delete all but the last two.

    Args:
        folder: Made if missing.
        step: Names the file.
        tensors: Any device; names may hold slashes.
        state: JSON-able.

    Raises:
        Outage: The folder cannot be written; the checkpoint before is untouched.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, metadata={"state": json.dumps(state)})
    path = folder / f"checkpoint-{step:09d}-{_digest(content)}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise Outage(
            f"The checkpoint of step {step} cannot be written ({error.strerror}): free some space "
            "or make the cache folder writable, and the same command goes on from the one before."
        ) from None
    for old in _checkpoints(folder)[_KEPT:]:
        old.unlink()
    for leftover in folder.glob(".checkpoint-*"):  # of a process that was killed while writing
        leftover.unlink()
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and state of the latest sound checkpoint; None if there is none."""
    for path in _checkpoints(folder):
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match is None or _digest(content) != match[2]:
            logger.warning("Checkpoint %s is damaged; the one before is tried.", path.name)
            continue
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            return load(content), json.loads(header["__metadata__"]["state"])
        except (SafetensorError, KeyError, ValueError):
            logger.warning("Checkpoint %s is of another format; it is passed over.", path.name)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, latest first."""
    paths = [path for path in folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(paths, reverse=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
