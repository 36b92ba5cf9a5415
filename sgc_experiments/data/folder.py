"""Image files in a folder, without a table: what a model may learn from without labels.

Every file below the folder counts (hidden ones and other file types, by their ending, do not), in
any of the formats that `dicom` decodes. The breast is cut out and scaled as in a dataset; there is
no lesion to cut out.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sgc_experiments.data.cache import open_cache
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.schema import hashed
from sgc_experiments.errors import UserError

_ENDINGS = frozenset({"", ".dcm", ".dicom", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npy"})

log = logging.getLogger("sgc_experiments.data")


@dataclass(frozen=True)
class FolderImages:
    """Prepared images of a folder.

    Attributes:
        images: (N, S, S) uint16, memory-mapped.
        image_ids: pseudonyms of the files' places in the folder, N of them.
        digest: SHA-256 over the content of the files and the settings.
    """

    images: np.ndarray
    image_ids: tuple[str, ...]
    digest: str


def load_folder(
    folder: Path,
    settings: PreprocessSettings,
    *,
    cache_dir: Path,
    workers: int = 0,
    progress: bool = True,
) -> FolderImages:
    """Prepare every image file below a folder; files that are no sound image are counted and left.

    Args:
        folder: searched with its subfolders; links to folders are not followed.
        settings: as for the dataset that the images go with.
        cache_dir: for the prepared images.
        workers: processes, 0 for one per core.
        progress: whether to show a bar.

    Raises:
        UserError: there is no such folder, the input is lesion crops, or no file is usable.
    """
    if settings.input == "roi":
        raise UserError(
            f"Images of the folder {folder.name} have no lesion boxes to be cut out by: use "
            "input=whole, or unlabelled=rest."
        )
    if not folder.is_dir():
        raise UserError(f"unlabelled={folder} is not a folder; give one that holds image files.")
    files = sorted(path for path in folder.rglob("*") if _counts(path, folder))
    table = pd.DataFrame(
        {
            "image_id": [hashed("img", str(p.relative_to(folder)), salt="folder") for p in files],
            "path": [str(path) for path in files],
            "lesions": [()] * len(files),
        }
    )
    cached = open_cache(
        table, settings, root=folder, cache_dir=cache_dir, workers=workers, progress=progress
    )
    if cached.rejected:
        reasons = pd.Series(list(cached.rejected.values())).value_counts()
        told = "; ".join(f"{count} × {reason}" for reason, count in reasons.items())
        log.warning("%s: %d of %d files left out (%s)", folder.name, len(cached.rejected),
                    len(files), told)  # fmt: skip
    if not cached.sources:
        raise UserError(
            f"unlabelled={folder} holds no usable image ({len(files)} files were tried)."
        )
    digest = hashlib.sha256(repr([settings.as_dict(), sorted(cached.sources.values())]).encode())
    usable = tuple(name for name in table["image_id"] if name in cached.sources)
    return FolderImages(cached.images, usable, digest.hexdigest())


def _counts(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in _ENDINGS and path.is_file()
