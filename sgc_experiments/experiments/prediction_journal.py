"""Predictions on disk: kept batch by batch, published at once, resumed after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from sgc_experiments.checkpoint import write_atomically
from sgc_experiments.errors import UserError


class PredictionJournal:
    """A file beside the table with one line per finished image.

    A line counts only for the same model and settings, and while the image's size and time of
    change are what they were.

    Args:
        out: the table.
        identity: JSON-able; whatever the predictions depend on besides the image.

    Raises:
        UserError: the table's folder is missing.
    """

    def __init__(self, out: Path, identity: object) -> None:
        if not out.parent.is_dir():
            raise UserError(f"out={out}: there is no folder {out.parent}; make it first.")
        self.out = out
        self._path = out.with_name(f"{out.name}.partial")
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self._read()
        self._file = self._path.open("a", encoding="utf-8")
        self._file.write("\n")  # in case the last line is unfinished
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read(self) -> None:
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that was being written, or an empty one
                continue
            if entry.get("identity") == self._identity:
                self._entries[entry["name"]] = entry

    def holds(self, name: str, path: Path, box: Sequence[float] | None) -> bool:
        """Say whether an image is done and has not changed since."""
        entry = self._entries.get(name)
        return entry is not None and entry["state"] == _state(path, box)

    def add(self, name: str, path: Path, box: Sequence[float] | None, row: dict[str, Any]) -> None:
        """Keep what was found out about an image: an answer, or a ``reason`` why there is none."""
        entry = {"identity": self._identity, "name": name, "state": _state(path, box), "row": row}
        self._entries[name] = entry
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def publish(
        self, names: list[str], finish: Callable[[pd.DataFrame], pd.DataFrame]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Write the table and the list of files without an answer, each at once.

        Args:
            names: the files, in the order of the rows.
            finish: what is done to the whole table before.

        Returns:
            Both, with the file in the column ``path``.
        """
        rows = [{"path": name, **self._entries[name]["row"]} for name in names]
        scored = finish(pd.DataFrame([row for row in rows if "reason" not in row]))
        rejected = pd.DataFrame([r for r in rows if "reason" in r], columns=["path", "reason"])
        quarantine = self.out.with_name(f"{self.out.stem}_quarantine.csv")
        for path, table in ((quarantine, rejected), (self.out, scored)):
            text = table.to_csv(index=False, lineterminator="\n")
            write_atomically(path, text.encode("utf-8", "surrogateescape"))
        self._path.unlink()
        return scored, rejected


def _state(path: Path, box: Sequence[float] | None) -> list[object]:
    try:
        status = os.stat(path)
    except OSError:
        return [-1, -1, box and list(box)]
    return [status.st_size, status.st_mtime_ns, box and list(box)]
