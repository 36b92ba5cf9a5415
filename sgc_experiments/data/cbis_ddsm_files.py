"""Where the files of a CBIS-DDSM download lie, whichever of its layouts it came in.

The case tables name every image as `<Folder>/<StudyUID>/<SeriesUID>/000000.dcm`. On disk the same
image is found under

    <Folder>/<StudyUID>/<SeriesUID>/000000.dcm                                          classic
    <Folder>/07-20-2016-DDSM-74994/1-full mammogram images-24515/000000.dcm             descriptive
    <Folder>/07-20-2016-DDSM-74994/1.000000-full mammogram images-24515/1-1.dcm         NBIA >= 3.6
    <Folder>/07-20-2016-DDSM-NA-74994/1.000000-full mammogram images-24515/1-1.dcm      newer
    jpeg/<SeriesUID>/1-204.jpg                                                    the JPEG mirror

The numbers at the end of the folder names are the last five characters of the UIDs, and
(Folder, last five characters of the series UID) is unique over the collection. That pair is the
key. File names are not: in the newer layouts a mask and a crop may both be called `1-1.dcm`.

The tables' paths are only ever looked up among files that were found below the root, so no path
in a table can lead out of it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from sgc_experiments.data.problems import read_csv_text

FOLDER = re.compile(
    r"(?P<kind>mass|calc)-(?P<subset>training|test)_(?P<patient>p_\d+)"
    r"_(?P<side>left|right)_(?P<view>cc|mlo)(?:_(?P<abnormality>\d+))?",
    re.IGNORECASE,
)
IMAGE_SUFFIXES = (".dcm", ".jpg", ".jpeg")
UID = re.compile(r"\d+(?:\.\d+){3,}")
KEY_DIGITS = 5


def series_key(folder: str, series: str) -> tuple[str, str]:
    """The key of a series: its Folder, case folded, and the last five characters of its UID."""
    return folder.lower(), series[-KEY_DIGITS:].lower()


@dataclass
class ReleaseFiles:
    """The files below the root of a release.

    Attributes:
        tables: lower-cased file name -> every CSV file of that name, the shallowest first.
    """

    tables: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    _series: dict[tuple[str, str], set[Path]] = field(default_factory=lambda: defaultdict(set))
    _by_uid: dict[str, set[Path]] = field(default_factory=lambda: defaultdict(set))

    def find(self, reference: str) -> tuple[Path, ...]:
        """The image files of the series that a case table's path names, in order; () if none."""
        parts = reference.replace("\\", "/").split("/")
        if len(parts) < 3:
            return ()
        folder, series = parts[0], parts[-2]
        found = self._series.get(series_key(folder, series)) or self._by_uid.get(series, set())
        return tuple(sorted(found))


def find_files(root: Path) -> ReleaseFiles:
    """Index every image and CSV file below `root`, in one walk.

    `metadata.csv` (written by the NBIA Data Retriever) and `dicom_info.csv` (of the JPEG mirror)
    add the series whose folder names do not tell them apart.
    """
    files = ReleaseFiles()
    images: dict[str, set[Path]] = {}
    walked: set[str] = set()
    for directory, below, names in os.walk(root, followlinks=True):
        # Releases are often linked into place, and links may form a circle.
        real = os.path.realpath(directory)
        if real in walked:
            below.clear()
            continue
        walked.add(real)
        here = Path(directory)
        for name in names:
            if name.lower().endswith(".csv") and not name.startswith("."):
                files.tables[name.lower()].append(here / name)
        found = {
            here / name
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
            # A link may lead nowhere, as in data sets whose content is fetched on demand.
            if os.path.isfile(here / name)
        }
        if found:
            images[directory] = found
            _add_by_folder_names(files, here.relative_to(root).parts, found)
    for paths in files.tables.values():
        paths.sort(key=lambda path: (len(path.parts), path))
    for path in files.tables.get("metadata.csv", []):
        _add_by_metadata(files, path, images)
    for path in files.tables.get("dicom_info.csv", []):
        _add_by_dicom_info(files, path)
    return files


def _add_by_folder_names(files: ReleaseFiles, parts: tuple[str, ...], found: set[Path]) -> None:
    """Enter the images of one directory under the key that its path spells."""
    if not parts:
        return
    folders = [part for part in parts[:-1] if FOLDER.fullmatch(part)]
    if folders:
        files._series[series_key(folders[-1], parts[-1])] |= found
    elif UID.fullmatch(parts[-1]):
        files._by_uid[parts[-1]] |= found


def _add_by_metadata(files: ReleaseFiles, path: Path, images: dict[str, set[Path]]) -> None:
    """Enter series by `metadata.csv`, whose locations are relative to it and may use backslashes.

    A location is looked up among the directories of the walk, never opened, so one that points
    outside is simply not found.
    """
    table = read_csv_text(path)
    if not {"series uid", "subject id", "file location"} <= set(table.columns):
        return
    for series, subject, location in zip(
        table["series uid"], table["subject id"], table["file location"], strict=True
    ):
        directory = os.path.normpath(os.path.join(path.parent, location.replace("\\", "/")))
        if found := images.get(directory):
            files._series[series_key(subject, series)] |= found


def _add_by_dicom_info(files: ReleaseFiles, path: Path) -> None:
    """Enter the JPEG mirror's series by its `dicom_info.csv`; its `PatientID` is the Folder."""
    table = read_csv_text(path)
    if not {"patientid", "seriesinstanceuid"} <= set(table.columns):
        return
    for folder, series in zip(table["patientid"], table["seriesinstanceuid"], strict=True):
        if found := files._by_uid.get(series):
            files._series[series_key(folder, series)] |= found
