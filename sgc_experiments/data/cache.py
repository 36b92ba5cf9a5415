"""Prepared images on disk: read once, memory-mapped ever after.

A cache is a folder named by a hash of what went into it (files by relative path, size and time;
lesions; settings; `VERSION`), so that a change of anything makes another cache:

    images.npy     (N, S, S) uint16, one row per usable image
    boxes.npy      (N, 4) float32
    cache.json     which image is which row or why it is none, and the SHA-256 of both arrays

Files that failed in passing (a busy machine, a share that was away) are tried again at every
opening, and the cache is made anew, from its own rows, if one of them has become usable.

It appears under its name only when complete. Until then it grows under `….partial` beside a journal
with one line per finished file, which holds the checksum of its row: after a kill, finished rows
that still match their checksum are kept and the rest is done again. A lock lets one process
fill a cache while others wait for it. The arrays are verified at every opening; a damaged cache is
rebuilt. Memory does not grow with the number of images.
"""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pandas as pd

from sgc_experiments.data.decode_pool import run_isolated
from sgc_experiments.data.prepare import PreparedImage, PrepareTask, prepare_file
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.rejection import PASSING, RejectedFile
from sgc_experiments.errors import unwritable
from sgc_experiments.file_lock import locked

VERSION = 2
"""Raised whenever the same files and settings would give other images than before."""

_ARRAYS = ("images.npy", "boxes.npy")

_UNWRITABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImages:
    """An opened cache.

    Attributes:
        images: (N, S, S) uint16, memory-mapped, read-only; in the order of the usable images.
        boxes: (N, 4) float32.
        rejected: reason by image_id.
        sources: SHA-256 of the source file by image_id, of the usable images.
    """

    images: np.ndarray
    boxes: np.ndarray
    rejected: dict[str, str]
    sources: dict[str, str]


def open_cache(
    table: pd.DataFrame,
    settings: PreprocessSettings,
    *,
    root: Path,
    cache_dir: Path,
    workers: int = 0,
    progress: bool = True,
) -> CachedImages:
    """Return the prepared images of a table, preparing them first if need be.

    Args:
        table: a checked image table.
        settings: how to prepare.
        root: folder of the dataset; files are known by their place below it.
        cache_dir: where caches live; made if missing.
        workers: processes that decode, 0 for one per core.
        progress: whether to show a bar.

    Raises:
        Outage: the cache folder cannot be written, or the disk is full.
    """
    folder = cache_dir / "images" / _key(table, settings, root)
    try:
        with locked(folder.with_suffix(".lock"), on_wait=_tell_of_waiting):
            former = _open(folder) if _intact(folder) else None
            if former is None or not PASSING.isdisjoint(former.rejected.values()):
                builder = _Builder(folder.with_suffix(".partial"), table, settings)
                if builder.build(former, workers=workers, progress=progress):
                    shutil.rmtree(folder, ignore_errors=True)
                    builder.folder.rename(folder)
                    (folder / "journal").unlink()
            return _open(folder)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise unwritable(cache_dir, error) from None


def _tell_of_waiting() -> None:
    _log.info("Another process is preparing the same images; waiting for it")


def _key(table: pd.DataFrame, settings: PreprocessSettings, root: Path) -> str:
    """Return the name of the cache: a hash over what its content depends on."""
    key = hashlib.sha256(json.dumps([VERSION, settings.as_dict()], sort_keys=True).encode())
    for image_id, path, lesions in table[["image_id", "path", "lesions"]].itertuples(index=False):
        try:
            status = os.stat(path)
            identity = [status.st_size, status.st_mtime_ns]
        except OSError:
            identity = [-1, -1]  # rejected later; readable again, it makes another cache
        row = [image_id, os.path.relpath(path, root), *identity, lesions[:1]]
        key.update(json.dumps(row).encode())
    return key.hexdigest()[:24]


def _intact(folder: Path) -> bool:
    """Whether a cache is there and its arrays are those that were written."""
    if not folder.exists():
        return False
    try:
        record = json.loads((folder / "cache.json").read_text())
        intact = all(_file_sha256(folder / name) == record["sha256"][name] for name in _ARRAYS)
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        intact = False
    if not intact:
        _log.warning("The image cache is damaged and will be rebuilt")
    return intact


def _open(folder: Path) -> CachedImages:
    record = json.loads((folder / "cache.json").read_text())
    return CachedImages(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        boxes=np.load(folder / "boxes.npy"),
        rejected=record["rejected"],
        sources=record["sources"],
    )


class _Builder:
    """Fills `folder` with a cache.

    Rows are written to the file, not through a memory map: dirty pages of a map count as resident
    memory, and a full disk would kill the process instead of raising an error.
    """

    def __init__(self, folder: Path, table: pd.DataFrame, settings: PreprocessSettings) -> None:
        self.folder = folder
        self._ids = list(table["image_id"])
        self._tasks = [
            PrepareTask(path, lesions[0] if lesions else None, settings)
            for path, lesions in table[["path", "lesions"]].itertuples(index=False)
        ]
        self._size = settings.image_size
        self._row_bytes = 2 * self._size**2
        self._header = _npy_header(len(self._ids), self._size)

    def build(self, former: CachedImages | None, *, workers: int, progress: bool) -> bool:
        """Prepare all images, continuing what an interrupted process left behind.

        Args:
            former: a whole cache, of which only what failed in passing is tried again.
            workers: processes that decode.
            progress: whether to show a bar.

        Returns:
            Whether `folder` holds a cache now; not so if everything failed again as it had before.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "images.npy"
        path.touch()
        with path.open("r+b") as images, (self.folder / "journal").open("a+") as journal:
            known = self._entries_of(former) if former else {}
            kept = {r: e for r, e in known.items() if e.get("reason") not in PASSING}
            entries = kept | self._resume(images, journal)
            missing = [row for row in range(len(self._ids)) if row not in entries]
            results = run_isolated(
                prepare_file,
                [self._tasks[row] for row in missing],
                workers=workers,
                progress="preparing images" if progress else None,
            )
            for position, result in results:
                row = missing[position]
                entries[row] = self._store(images, row, result)
                journal.write(json.dumps(entries[row]) + "\n")
                journal.flush()
            if former and entries == known:
                shutil.rmtree(self.folder)
                return False
            if former:
                self._copy(former, images)
            usable = [row for row in range(len(self._ids)) if "reason" not in entries[row]]
            self._compact(images, usable)
        self._record(entries, usable)
        return True

    def _entries_of(self, cache: CachedImages) -> dict[int, dict[str, Any]]:
        """Return the journal entries of a whole cache, without checksums of rows."""
        boxes = dict(zip(cache.sources, cache.boxes, strict=True))
        entries: dict[int, dict[str, Any]] = {}
        for row, name in enumerate(self._ids):
            if name in cache.rejected:
                entries[row] = {"row": row, "reason": cache.rejected[name]}
            else:
                box = None if np.isnan(boxes[name]).any() else boxes[name].tolist()
                entries[row] = {"row": row, "source": cache.sources[name], "box": box}
        return entries

    def _copy(self, cache: CachedImages, images: BinaryIO) -> None:
        """Write the images of a whole cache into their rows."""
        usable = [row for row, name in enumerate(self._ids) if name in cache.sources]
        for row, pixels in zip(usable, cache.images, strict=True):
            self._write(images, row, pixels.tobytes())

    def _resume(self, images: BinaryIO, journal: TextIO) -> dict[int, dict[str, Any]]:
        """Return the entries of an interrupted journal whose rows are as they were written.

        Rejected files are tried again, since what killed the process may have killed a decoder.
        """
        entries = {}
        journal.seek(0)
        for line in journal:
            try:
                entry = json.loads(line)
            except ValueError:  # the line that was being written
                continue
            if "reason" not in entry and _sha256(self._read(images, entry["row"])) == entry["sha"]:
                entries[entry["row"]] = entry
        journal.write("\n")  # in case the last line is unfinished
        if entries:
            _log.info("Continuing an interrupted preparation: %d images are done", len(entries))
        return entries

    def _store(
        self, images: BinaryIO, row: int, result: PreparedImage | RejectedFile
    ) -> dict[str, Any]:
        """Write a prepared image into its row; return its journal entry."""
        if isinstance(result, RejectedFile):
            return {"row": row, "reason": str(result.reason)}
        pixels = result.pixels.astype("<u2", copy=False).tobytes()
        self._write(images, row, pixels)
        images.flush()
        box = None if np.isnan(result.box).any() else result.box.tolist()
        return {"row": row, "sha": _sha256(pixels), "source": result.sha256, "box": box}

    def _compact(self, images: BinaryIO, usable: list[int]) -> None:
        """Close the gaps that rejected images left, and give the file its header."""
        for place, row in enumerate(usable):
            if place != row:
                self._write(images, place, self._read(images, row))
        images.truncate(len(self._header) + len(usable) * self._row_bytes)
        header = _npy_header(len(usable), self._size)
        if len(header) != len(self._header):
            raise RuntimeError("NumPy changed the length of its header with the number of rows")
        images.seek(0)
        images.write(header)

    def _record(self, entries: dict[int, dict[str, Any]], usable: list[int]) -> None:
        """Write boxes and `cache.json`."""
        boxes = np.full((len(usable), 4), np.nan, "<f4")
        for place, row in enumerate(usable):
            if entries[row]["box"] is not None:
                boxes[place] = entries[row]["box"]
        np.save(self.folder / "boxes.npy", boxes)
        rejected = {
            self._ids[row]: entry["reason"]
            for row, entry in sorted(entries.items())
            if "reason" in entry
        }
        record = {
            "sha256": {name: _file_sha256(self.folder / name) for name in _ARRAYS},
            "sources": {self._ids[row]: entries[row]["source"] for row in usable},
            "rejected": rejected,
        }
        (self.folder / "cache.json").write_text(json.dumps(record))

    def _read(self, images: BinaryIO, row: int) -> bytes:
        images.seek(len(self._header) + row * self._row_bytes)
        return images.read(self._row_bytes)

    def _write(self, images: BinaryIO, row: int, pixels: bytes) -> None:
        images.seek(len(self._header) + row * self._row_bytes)
        images.write(pixels)


def _npy_header(rows: int, size: int) -> bytes:
    """Return the header of an .npy file; NumPy pads it to one length for any number of rows."""
    buffer = io.BytesIO()
    shape = (rows, size, size)
    description = {"descr": "<u2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
