"""Folder and file names of CBIS-DDSM's layouts, for one series at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from sgc_experiments.errors import UserError

Style = Literal["classic", "descriptive", "nbia", "newer", "kaggle_jpeg"]

UID_ROOT = "1.3.6.1.4.1.9590.100.1.2"
MANIFEST = "manifest-1600709154662"
# Folder of a study and of a series, by style; the numbers are the ends of the two UIDs.
STUDY_NAMES = {
    "classic": "{study}",
    "descriptive": "07-20-2016-DDSM-{study_end}",
    "nbia": "07-20-2016-DDSM-{study_end}",
    "newer": "07-20-2016-DDSM-NA-{study_end}",
}
SERIES_NAMES = {
    "classic": "{series}",
    "descriptive": "1-{description}-{series_end}",
    "nbia": "1.000000-{description}-{series_end}",
    "newer": "1.000000-{description}-{series_end}",
}


def check_style(style: str, syntax: str) -> None:
    """Raise `UserError` unless `style` is a layout and can hold files of `syntax`."""
    if style not in get_args(Style):
        raise UserError(f"style={style!r} must be one of {', '.join(get_args(Style))}")
    if style == "kaggle_jpeg" and syntax != "native":
        raise UserError("style=kaggle_jpeg holds JPEG files; leave syntax at native")


def synthetic_uid(*source: object, serial: int) -> str:
    """A UID under the root that the release uses, ending in five digits that are `serial`."""
    digest = hashlib.sha256(repr(source).encode()).hexdigest()
    return f"{UID_ROOT}.{int(digest, 16) % 10**33 + 10**33}{serial % 10**5:05d}"


@dataclass(frozen=True)
class Series:
    """One series: its Folder (a view or an abnormality), UIDs and description."""

    folder: str
    study: str
    uid: str
    description: str

    def reference(self, number: int) -> str:
        """The path of its file `number` (from 0) as the case tables spell it in every layout."""
        return f"{self.folder}/{self.study}/{self.uid}/{number:06d}.dcm"

    def path(self, style: str, number: int) -> PurePosixPath:
        """Where its file `number` (from 0) lies below the release."""
        if style == "kaggle_jpeg":
            # The second number of the mirror's names means nothing that is documented.
            return PurePosixPath(
                "jpeg", self.uid, f"{number + 1}-{int(self.uid[-5:]) % 256:03d}.jpg"
            )
        names = {
            "study": self.study,
            "series": self.uid,
            "study_end": self.study[-5:],
            "series_end": self.uid[-5:],
            "description": self.description,
        }
        file = f"1-{number + 1}.dcm" if style in ("nbia", "newer") else f"{number:06d}.dcm"
        return PurePosixPath(
            *((MANIFEST,) if style in ("nbia", "newer") else ()),
            "CBIS-DDSM",
            self.folder,
            STUDY_NAMES[style].format(**names),
            SERIES_NAMES[style].format(**names),
            file,
        )
