"""A real tracking server over HTTP on the loopback, which can be taken down and brought back."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.conftest import Workspace


class TrackingServer:
    """`mlflow server` on the store of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def up(self) -> None:
        """Start it, and wait until it answers."""
        folder: Path = self.workspace.folder
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.workspace.tracking_uri]
        self._process = subprocess.Popen(
            [*command, "--artifacts-destination", str(folder / "served")],
            cwd=folder,
            # Without the processes for MLflow's jobs, which no run of ours asks for.
            env=self.workspace.environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=(folder / "server.txt").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        raise AssertionError((folder / "server.txt").read_text()[-2000:])

    def down(self) -> None:
        """Kill it, with its workers."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
