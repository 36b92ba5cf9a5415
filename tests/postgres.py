"""A real PostgreSQL server for the tests that share one: in a temporary folder, on loopback."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

_START_SECONDS = 30


@dataclass(frozen=True)
class PostgresServer:
    """A running server; its password is that of the superuser `postgres`."""

    port: int
    password: str

    def url(self, database: str = "postgres") -> str:
        """As SQLAlchemy takes it; without the driver's name it would look for another one."""
        return self.dsn(database).replace("postgresql:", "postgresql+psycopg2:")

    def dsn(self, database: str = "postgres") -> str:
        """As the driver takes it, and as people write it."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The name of a new, empty database."""
        name = f"test_{secrets.token_hex(4)}"
        connection = psycopg2.connect(self.dsn())
        connection.autocommit = True  # CREATE DATABASE takes no transaction
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return name


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server, and stop it at the end; it also stops when this process is killed.

    Where PostgreSQL is missing the tests that need it are skipped, but fail in CI.
    """
    binaries = _binaries()
    # Not below pytest's folders: those are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = PostgresServer(_free_port(), secrets.token_hex(8))
    try:
        (folder / "password").write_text(server.password)
        _make_cluster(binaries, folder)
        command = [
            str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(server.port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
            "-c", "fsync=off",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_unprivileged("--pdeathsig", "INT"), *command],
                cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            _wait(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:  # a client is still connected
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    found = installed[-1] if installed else shutil.which("initdb")
    if found and (os.geteuid() or shutil.which("setpriv")):
        return Path(found).parent
    reason = "PostgreSQL is not installed: `make services` installs it on Debian, as root"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _unprivileged(*options: str) -> list[str]:
    """The beginning of a command that runs as somebody else than root, whom PostgreSQL refuses."""
    if os.geteuid():
        return []
    return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *options]


def _make_cluster(binaries: Path, folder: Path) -> None:
    if not os.geteuid():
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "postgres", "postgres")
    done = subprocess.run(
        [
            *_unprivileged(), str(binaries / "initdb"), "-D", str(folder / "data"), "--no-sync",
            "--username", "postgres", "--pwfile", str(folder / "password"),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C",
        ],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg2.connect(server.dsn()).close()
            return
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(log.read_text(errors="replace")) from None
            time.sleep(0.1)
