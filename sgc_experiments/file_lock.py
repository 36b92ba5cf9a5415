"""One process at a time: a lock that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from sgc_experiments.errors import UserError


@contextlib.contextmanager
def locked(path: Path, *, refusal: str | None = None) -> Iterator[None]:
    """Hold a lock file.

    Args:
        path: of the file; it and its folder are made if missing.
        refusal: what to tell a user who cannot have it at once; None: wait.

    Raises:
        UserError: another process holds it, and there is a refusal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise UserError(str(refusal)) from None
        yield
