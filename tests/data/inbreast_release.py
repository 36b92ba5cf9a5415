"""A tiny INbreast release on disk, in whatever form a test asks for."""

import plistlib
import struct
from dataclasses import dataclass, field
from pathlib import Path

from tests.data.dicom_files import breast, dicom_bytes

HEADER = [
    "Patient ID",
    "Patient age",
    "Laterality",
    "View",
    "Acquisition date",
    "File Name",
    "ACR",
    "Bi-Rads",
]
OUTLINE = [(5.0, 40.0), (20.5, 42.0), (12.0, 55.25)]


@dataclass(frozen=True)
class Image:
    """One image of a release; `regions` are (name, points), None for no annotation file."""

    number: int
    patient: str
    side: str = "L"
    view: str = "CC"
    grade: str = "2"
    acr: str = "2"
    date: str = "200801"
    regions: list | None = field(default_factory=lambda: [("Mass", OUTLINE)])
    data: bytes | None = None

    @property
    def stem(self) -> str:
        return f"{self.number}_{self.patient}_MG_{self.side}_{self.view.replace('MLO', 'ML')}_ANON"

    @property
    def cells(self) -> list[str]:
        row = [self.side, self.view, self.date, str(self.number), self.acr, self.grade]
        return ["removed", "removed", *row]


def images(patients: int, views: int = 1) -> list[Image]:
    """Images of so many patients, every second one malignant."""
    return [
        Image(
            22_000_000 + 10 * patient + view,
            f"{patient:016x}",
            view=("CC", "MLO")[view],
            grade="5" if patient % 2 else "2",
        )
        for patient in range(patients)
        for view in range(views)
    ]


def write_release(
    root: Path,
    content: list[Image],
    *,
    rows: list[list[str]] | None = None,
    flat: bool = False,
    table: bool = True,
) -> Path:
    """Write files and `INbreast.csv`; `rows` replaces the table's rows."""
    dicoms = root if flat else root / "AllDICOMs"
    annotations = root if flat else root / "AllXML"
    for folder in (dicoms, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for image in content:
        data = image.data or dicom_bytes(
            breast(seed=image.number), WindowCenter=2048, WindowWidth=4096
        )
        (dicoms / f"{image.stem}.dcm").write_bytes(data)
        if image.regions is not None:
            (annotations / f"{image.number}.xml").write_bytes(osirix(image.regions))
    if table:
        cells = [HEADER, *(rows if rows is not None else [image.cells for image in content])]
        text = "".join(";".join(row) + "\r\n" for row in cells)
        (root / "INbreast.csv").write_bytes(text.encode())
    return root


def osirix(regions: list) -> bytes:
    rois = [
        {
            "Name": name,
            "NumberOfPoints": len(points),
            "Point_px": [f"({x:f}, {y:f})" for x, y in points],
            "Type": 15,
        }
        for name, points in regions
    ]
    return plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]})


def xls(sheets: list[list[list[str | float]]]) -> bytes:
    """Encode sheets of cells as a BIFF5 stream, the format of Excel 5, which xlrd reads bare."""

    def record(kind: int, body: bytes = b"") -> bytes:
        return struct.pack("<HH", kind, len(body)) + body

    def begin(kind: int) -> bytes:
        return record(0x809, struct.pack("<HHHH", 0x500, kind, 0, 0))

    end = record(0x0A)
    bodies = []
    for cells in sheets:
        body = begin(0x10)
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                place = struct.pack("<HHH", y, x, 0)
                if isinstance(cell, float):
                    body += record(0x203, place + struct.pack("<d", cell))
                elif cell:
                    text = cell.encode("latin-1")
                    body += record(0x204, place + struct.pack("<H", len(text)) + text)
        bodies.append(body + end)
    style = record(0xE0, bytes(16))
    names = [f"Sheet{n}".encode() for n in range(len(sheets))]
    head = len(begin(5)) + len(style) + sum(4 + 7 + len(name) for name in names) + len(end)
    globals_ = begin(5) + style
    for name, body in zip(names, bodies, strict=True):
        globals_ += record(0x85, struct.pack("<IHB", head, 0, len(name)) + name)
        head += len(body)
    return globals_ + end + b"".join(bodies)
