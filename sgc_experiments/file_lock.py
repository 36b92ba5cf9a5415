"""One process at a time: a lock that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from sgc_experiments.errors import UserError, unwritable


@contextlib.contextmanager
def locked(
    path: Path, *, refusal: str | None = None, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock file.

    Args:
        path: of the file; it and its folder are made if missing.
        refusal: what to tell a user who cannot have it at once; None: wait.
        on_wait: called before waiting for another process.

    Raises:
        UserError: another process holds it, and there is a refusal.
        Outage: its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    except OSError as error:
        raise unwritable(path.parent, error) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise UserError(refusal) from None
            if on_wait:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
