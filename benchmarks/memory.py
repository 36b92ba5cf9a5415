"""What a process needed at most; a module of its own, since measuring must not load anything."""

import re
from pathlib import Path


def peak_megabytes() -> float:
    """The largest resident memory of this program so far, in MB.

    Read from Linux's account of the program: `getrusage` counts the process it was forked from too.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kibibytes) * 1024 / 1e6
