"""What a compressed image says about itself, read from its first bytes without decoding it.

A decoder allocates what the codestream declares, whatever the DICOM header around it says: a
JPEG 2000 file of 1,230 bytes can ask for 288 MB. So the declared geometry is compared with the
header first. The markers are those of ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000, annex A)
and DICOM PS3.5 annex G (RLE).
"""

import itertools
import struct
from typing import NamedTuple

from sgc_experiments.data.rejection import Reason, RejectedFile

_JPEG_START = b"\xff\xd8"
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})  # baseline … lossless, JPEG-LS
_JPEG_SCAN = 0xDA
_JPEG_END = 0xD9
_LSE = 0xF8
_LSE_OVERSIZE = 4  # JPEG-LS can hide a second, larger size in this segment
_JPEG2000_START = b"\xff\x4f\xff\x51"
_SIZ = struct.Struct(">HHIIIIIIIIH")
_MAX_TILES = 4096
_RLE_HEADER = struct.Struct("<16I")


class FrameSize(NamedTuple):
    """The geometry that a codestream declares."""

    rows: int
    columns: int
    samples: int
    precision: int  # bits per sample
    process: int  # the frame marker's second byte; 0 for JPEG 2000


def jpeg_size(stream: bytes) -> FrameSize:
    """Read the frame header of a JPEG, lossless JPEG or JPEG-LS stream.

    Raises:
        RejectedFile: the stream has no frame header, or hides its size.
    """
    if not stream.startswith(_JPEG_START):
        raise RejectedFile(Reason.CONTRADICTION)
    position = 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", stream, position + 2)
        if marker in _JPEG_FRAMES and position + 10 <= len(stream):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", stream, position + 4)
            return FrameSize(rows, columns, samples, precision, marker)
        hidden = marker == _LSE and stream[position + 4 : position + 5] == bytes([_LSE_OVERSIZE])
        if marker in (_JPEG_SCAN, _JPEG_END) or length < 2 or hidden:
            break
        position += 2 + length
    raise RejectedFile(Reason.CONTRADICTION)


def jpeg2000_size(stream: bytes) -> FrameSize:
    """Read the SIZ segment of a bare JPEG 2000 codestream (not of a JP2 file).

    Raises:
        RejectedFile: the stream is something else, or a geometry that no mammogram needs
            (an offset, subsampling, thousands of tiles).
    """
    if not stream.startswith(_JPEG2000_START) or len(stream) < 4 + _SIZ.size + 3:
        raise RejectedFile(Reason.CONTRADICTION)
    (_, _, width, height, x0, y0, tile_width, tile_height, tile_x0, tile_y0, samples) = (
        _SIZ.unpack_from(stream, 4)
    )
    depth, step_x, step_y = stream[4 + _SIZ.size : 7 + _SIZ.size]
    plain = (x0, y0, tile_x0, tile_y0, step_x, step_y) == (0, 0, 0, 0, 1, 1)
    if not plain or tile_width == 0 or tile_height == 0:
        raise RejectedFile(Reason.CONTRADICTION)
    if -(-width // tile_width) * -(-height // tile_height) > _MAX_TILES:
        raise RejectedFile(Reason.CONTRADICTION)
    return FrameSize(height, width, samples, (depth & 0x7F) + 1, 0)


def require_end(stream: bytes) -> None:
    """Reject a JPEG or JPEG 2000 stream without its end marker, FF D9 in both.

    A truncated JPEG-LS stream decodes silently; this is the only sign of it.
    """
    if not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise RejectedFile(Reason.TRUNCATED)


def rle_segments(stream: bytes, *, pixels: int, bytes_per_pixel: int) -> list[bytes]:
    """Cut an RLE frame into its segments, one per byte of a pixel, the most significant first.

    Raises:
        RejectedFile: the number, order or length of the segments cannot belong to such an image.
    """
    if len(stream) < _RLE_HEADER.size:
        raise RejectedFile(Reason.TRUNCATED)
    count, *offsets = _RLE_HEADER.unpack_from(stream)
    if count != bytes_per_pixel or offsets[0] != _RLE_HEADER.size:
        raise RejectedFile(Reason.CONTRADICTION)
    segments = []
    for start, stop in itertools.pairwise([*offsets[:count], len(stream)]):
        if start >= stop:
            raise RejectedFile(Reason.TRUNCATED)
        # Two bytes make a run of up to 128 pixels, and no pixel takes more than two bytes. This
        # bounds what the decoder may allocate; the exact length is checked afterwards.
        if not pixels <= 64 * (stop - start) or stop - start > 2 * pixels + 2:
            raise RejectedFile(Reason.CONTRADICTION)
        segments.append(stream[start:stop])
    return segments
