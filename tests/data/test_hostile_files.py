"""Seeded mutations of real files: no crash of the program, no hang, bounded memory, a reason for
every rejection, and every good file between them still read."""

import resource
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sgc_experiments.data.decode_pool import run_isolated
from sgc_experiments.data.prepare import PreparedImage, PrepareTask, prepare_file
from sgc_experiments.data.preprocess import PreprocessSettings
from sgc_experiments.data.rejection import Reason, RejectedFile
from tests.data.dicom_files import SYNTAXES, breast, dicom_bytes

SETTINGS = PreprocessSettings(input="roi", image_size=32)
LESION = (5.0, 40.0, 20.0, 55.0)
MEMORY = 3 << 30
CONTAINED = {Reason.CRASH, Reason.TIMEOUT, Reason.MEMORY}


class Mutation(NamedTuple):
    """A mutated file to prepare; the worker writes it, so that a good one costs no disk here."""

    path: str
    data: bytes


def prepare_mutation(mutation: Mutation) -> tuple[PreparedImage, int]:
    """Run in a worker: prepare the file, and tell the worker's peak memory in KiB."""
    path = Path(mutation.path)
    path.write_bytes(mutation.data)
    try:
        result = prepare_file(PrepareTask(mutation.path, LESION, SETTINGS))
    finally:
        path.unlink()
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Header fields of two bytes that say how to read the pixels, as they stand in an explicit header.
US_FIELDS = [b"\x28\0" + bytes([element, page]) + b"US\2\0" for element, page in (
    (0x02, 0), (0x10, 0), (0x11, 0), (0x00, 1), (0x01, 1), (0x02, 1), (0x03, 1),
)]  # fmt: skip
LIES = [0, 1, 2, 7, 8, 12, 15, 16, 17, 32, 63, 64, 65, 95, 96, 97, 8191, 8192, 8193, 65535]


def lie(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one to three header fields to another value that the field may hold."""
    for field in rng.choice(len(US_FIELDS), size=rng.integers(1, 4), replace=False):
        place = data.find(US_FIELDS[field])
        if place >= 0:
            value = int(rng.choice(LIES)).to_bytes(2, "little")
            data = data[: place + 8] + value + data[place + 10 :]
    return data


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """Let header and codestream agree on a size that the file does not hold."""
    rows, columns = (int(side) for side in rng.integers(1024, 8193, size=2))
    data = data.replace(
        US_FIELDS[1] + (96).to_bytes(2, "little"), US_FIELDS[1] + rows.to_bytes(2, "little")
    )
    data = data.replace(
        US_FIELDS[2] + (64).to_bytes(2, "little"), US_FIELDS[2] + columns.to_bytes(2, "little")
    )
    # JPEG and JPEG-LS write rows and columns in two bytes each, JPEG 2000 columns and rows in four.
    for width, order in ((2, ((96, rows), (64, columns))), (4, ((64, columns), (96, rows)))):
        before, after = (b"".join(p[i].to_bytes(width, "big") for p in order) for i in (0, 1))
        data = data.replace(before, after)
    return data


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of the ways that files get damaged, or are made to."""
    draw = rng.random()
    if draw < 0.01:  # a bomb takes a hundred times as long as another file
        return bomb(data, rng)
    if draw < 0.15:
        return lie(data, rng)
    buffer = bytearray(data)
    # Half of all damage goes to the header and the first bytes of the codestream.
    end = len(buffer) if rng.random() < 0.5 else min(len(buffer), 900)
    start = int(rng.integers(128, end))
    kind = rng.choice(["bits", "bytes", "truncate", "length", "zero", "repeat", "swap"])
    if kind == "bits":
        for place in rng.integers(128, end, size=rng.integers(1, 9)):
            buffer[place] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        buffer[start : start + 4] = rng.bytes(4)
    elif kind == "truncate":
        del buffer[start:]
    elif kind == "length":  # a huge or undefined length, or size
        buffer[start : start + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\x20"]
        )
    elif kind == "zero":
        buffer[start : start + 64] = bytes(64)
    elif kind == "repeat":
        buffer[start:start] = buffer[start : start + int(rng.integers(1, 300))] * 3
    else:
        other = int(rng.integers(128, end))
        buffer[start : start + 8], buffer[other : other + 8] = (
            buffer[other : other + 8],
            buffer[start : start + 8],
        )
    return bytes(buffer)


def campaign(folder: Path, syntaxes: tuple[str, ...], count: int, seed: int) -> dict[str, int]:
    """Mutate `count` files per syntax with a good file after every ten; return the outcomes."""
    mutations, good = [], {}
    for syntax in syntaxes:
        original = dicom_bytes(breast(), syntax, WindowCenter=2048, WindowWidth=4096)
        rng = np.random.default_rng([seed, SYNTAXES.index(syntax)])
        for number in range(count):
            if number % 10 == 0:
                good[len(mutations)] = syntax
                mutations.append(Mutation(str(folder / f"{len(mutations)}"), original))
            mutations.append(Mutation(str(folder / f"{len(mutations)}"), mutate(original, rng)))

    expected = prepare_mutation(mutations[0])[0].pixels
    outcomes: dict[str, int] = {}
    peak = 0
    for position, result in run_isolated(
        prepare_mutation, mutations, workers=2, timeout=10, memory=MEMORY
    ):
        if isinstance(result, RejectedFile):
            assert position not in good
            assert isinstance(result.reason, Reason)
            assert result.reason != Reason.UNEXPECTED, result.place
            outcomes[result.reason.name] = outcomes.get(result.reason.name, 0) + 1
            continue
        image, memory = result
        peak = max(peak, memory)
        assert image.pixels.shape == (32, 32)
        assert image.pixels.dtype == np.uint16
        outcomes["read"] = outcomes.get("read", 0) + 1
        if position in good:
            np.testing.assert_array_equal(image.pixels, expected)
    assert sum(outcomes.values()) == len(mutations)
    assert peak < MEMORY >> 10
    return outcomes


def test_a_sample_of_mutations(tmp_path):
    outcomes = campaign(tmp_path, SYNTAXES, count=100, seed=0)
    assert outcomes["read"] >= 50
    assert sum(outcomes.values()) - outcomes["read"] >= 100


@pytest.mark.slow
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_campaign_of_mutations(tmp_path, syntax, figures_of_campaign):
    outcomes = campaign(tmp_path, (syntax,), count=2000, seed=1)
    figures = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    figures_of_campaign(f"fuzzing {syntax}: {sum(outcomes.values())} files: {figures}")


@pytest.mark.parametrize("syntax", ["j2k", "jpegls"])
def test_a_bomb_is_contained(tmp_path, syntax):
    """A small file whose header and codestream agree on the largest size that is allowed."""
    data = dicom_bytes(breast(32, 48), syntax, Rows=8192, Columns=8191)
    for width in (2, 4):  # JPEG-LS declares rows and columns, JPEG 2000 columns and rows
        order = ((32, 8192), (48, 8191)) if width == 2 else ((48, 8191), (32, 8192))
        small, huge = (b"".join(pair[i].to_bytes(width, "big") for pair in order) for i in (0, 1))
        data = data.replace(small, huge)
    assert len(data) < 20_000
    path = tmp_path / "bomb.dcm"
    path.write_bytes(data)

    began = time.monotonic()
    task = PrepareTask(str(path), LESION, SETTINGS)
    ((_, result),) = run_isolated(prepare_file, [task], timeout=20, memory=MEMORY)
    assert time.monotonic() - began < 30
    assert isinstance(result, RejectedFile)
    assert result.reason in CONTAINED | {Reason.UNDECODABLE, Reason.BLANK}
