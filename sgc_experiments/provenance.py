"""What a result came from, beside its configuration and data: code, packages and machine."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).resolve().parents[1]
COMMIT_VARIABLE = "SGC_COMMIT"


@functools.cache
def commit() -> str:
    """The commit of the running code, with ``-dirty`` when files differ from it.

    A copy of the code on another machine is told it in the variable ``SGC_COMMIT``.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Python, the platform, the number of CPUs and the versions of all packages, JSON-able."""
    packages = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
