"""What a command keeps on this machine until its run is finished, and how it is found again.

A run has a folder `<cache_dir>/runs/<key>` for checkpoints and the journal of its metrics. The key
is a digest of the configuration, the commit and the cache itself, so that the same command on the
same machine comes to the same folder, and finds its MLflow run by the same key. A lock tells a run
that was broken off from one that is still going: two equal commands at once have two folders and
two runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from sgc_experiments.errors import unwritable

# Where things lie changes no result, nor does the number of processes.
_BESIDE_THE_RESULT = frozenset({"cache_dir", "config", "processes"})
_LOCK = "lock"


class RunFolder(NamedTuple):
    """A run's folder, held by this process alone, and the key by which MLflow knows its run."""

    key: str
    path: Path


@contextlib.contextmanager
def run_folder(cache_dir: Path, config: Mapping[str, Any], **identity: str) -> Iterator[RunFolder]:
    """Hold the folder of a run for as long as the block lasts; it is made if missing.

    Args:
        cache_dir: Where runs have their folders.
        config: The resolved configuration, JSON-able.
        identity: What else tells the run from others.

    Raises:
        Outage: The folder cannot be written.
    """
    beside = _BESIDE_THE_RESULT
    if config.get("dataset") == "phantom":  # whose default depends on the working folder
        beside |= {"data_dir"}
    relevant = {name: value for name, value in config.items() if name not in beside}
    key = key_of(relevant, identity, cache_identity(cache_dir))
    runs = cache_dir / "runs"
    try:
        name, lock = _first_free(runs, key)
    except OSError as error:
        raise unwritable(cache_dir, error) from None
    with lock:
        yield RunFolder(name, runs / name)


def key_of(*facts: Any) -> str:
    """A digest of facts, which are JSON-able: equal work is found again by it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def empty(folder: RunFolder) -> None:
    """Delete what a run has left that is finished, or was deleted in MLflow."""
    for path in folder.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def discard(folder: RunFolder) -> None:
    """Delete the folder of a run that is finished."""
    shutil.rmtree(folder.path, ignore_errors=True)


def cache_identity(cache_dir: Path) -> str:
    """A random text that makes this cache differ from those of other machines.

    Raises:
        Outage: The folder cannot be written.
    """
    runs = cache_dir / "runs"
    path = runs / "identity"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            temporary = runs / f".identity.{secrets.token_hex(4)}"
            temporary.write_text(secrets.token_hex(16), encoding="utf-8")
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(temporary, path)
            temporary.unlink()
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unwritable(cache_dir, error) from None


def _first_free(runs: Path, key: str) -> tuple[str, TextIO]:
    """The name of the first folder for a key that no other process holds, and its lock."""
    name, number = key, 1
    while (lock := _lock(runs / name)) is None:
        number += 1
        name = f"{key}-{number}"
    return name, lock


def _lock(folder: Path) -> TextIO | None:
    """Lock a folder, which is made if missing; None if another process has it.

    The kernel frees the lock when the process ends, however it ends.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            file = (folder / _LOCK).open("a", encoding="utf-8")
        except FileNotFoundError:  # its run has just finished
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == (folder / _LOCK).stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass  # locked when it was gone already
        file.close()
