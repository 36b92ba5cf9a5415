"""Memory that is freed is there again without the kernel."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from sgc_experiments.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        together = [torch.ones(2**18) for _ in range(40)]  # 1 MB each
        del together
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept():
    # Left alone, glibc would change these with what has been freed, and the test would be of luck.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=os.environ | fixed,
        capture_output=True,
        text=True,
        check=True,
    )
    without, kept = map(int, done.stdout.split())
    assert without > 10_000
    assert kept < without / 20
