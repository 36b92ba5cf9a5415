"""Who does what, where several processes share a database and any of them may be killed.

A row of the table ``sgc_claims`` is either a fact, which the first to tell it settles for all, or a
claim on a piece of work. A claim is renewed while its owner lives; one that was not renewed for
`lost_after` seconds is free again. All times are the database's own, so that clocks of different
machines need not agree.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Column, ColumnClause, MetaData, String, Table, literal_column
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

_NOW = {
    "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT)",
}
_NEVER = 2**62
_POLL_SECONDS = 0.2

_table = Table(
    "sgc_claims",
    MetaData(),
    Column("scope", String(200), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("value", String(200), nullable=False),
    Column("expires", BigInteger, nullable=False),
)


class Claims:
    """Facts and claims of one scope in a database, SQLite or PostgreSQL.

    Args:
        url: of the database, as SQLAlchemy takes it.
        scope: keeps what several studies settle apart.
        lost_after: seconds after which the claim of a silent owner is free, at least 3.
    """

    def __init__(self, url: str, scope: str, *, lost_after: int) -> None:
        self.scope, self.lost_after = scope, lost_after
        waiting = {"timeout": 60} if url.startswith("sqlite") else {}
        self.engine = sqlalchemy.create_engine(url, connect_args=waiting, pool_pre_ping=True)
        self._now: ColumnClause[Any] = literal_column(_NOW[self.engine.dialect.name])
        try:
            _table.create(self.engine, checkfirst=True)
        except (IntegrityError, OperationalError, ProgrammingError):
            # Another process made it between the check and the making.
            if not sqlalchemy.inspect(self.engine).has_table(_table.name):
                raise

    def settle(self, name: str, value: str) -> str:
        """Tell a fact; the value that was told first counts and is returned."""
        if self._insert(name, value, _NEVER):
            return value
        with self.engine.connect() as connection:
            query = sqlalchemy.select(_table.c.value).where(self._row(name))
            return str(connection.execute(query).scalar_one())

    def known(self, name: str) -> bool:
        """Whether a fact was settled."""
        with self.engine.connect() as connection:
            query = sqlalchemy.select(_table.c.value).where(self._row(name))
            return connection.execute(query).first() is not None

    def replace(self, name: str, old: str, new: str) -> str:
        """Replace a fact that is wrong by now, unless another process did; see `settle`."""
        with self.engine.begin() as connection:
            condition = self._row(name) & (_table.c.value == old)
            connection.execute(sqlalchemy.update(_table).where(condition).values(value=new))
        return self.settle(name, new)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait until a claim is ours, and hold it."""
        while True:
            with self.try_to_hold(name) as held:
                if held:
                    yield
                    return
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def try_to_hold(self, name: str) -> Iterator[bool]:
        """Hold a claim if it is free; yields whether it is ours."""
        owner = uuid.uuid4().hex
        if not self._take(name, owner):
            yield False
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(name, owner, stop), daemon=True)
        thread.start()
        try:
            yield True
        finally:
            stop.set()
            thread.join()
            with self.engine.begin() as connection:
                ours = self._row(name) & (_table.c.value == owner)
                connection.execute(sqlalchemy.delete(_table).where(ours))

    def _take(self, name: str, owner: str) -> bool:
        lost = self._row(name) & (_table.c.expires < self._now)
        renewed = {"value": owner, "expires": self._now + self.lost_after}
        with self.engine.begin() as connection:
            taken = connection.execute(sqlalchemy.update(_table).where(lost).values(renewed))
        return taken.rowcount == 1 or self._insert(name, owner, self._now + self.lost_after)

    def _insert(self, name: str, value: str, expires: object) -> bool:
        row = {"scope": self.scope, "name": name, "value": value, "expires": expires}
        try:
            with self.engine.begin() as connection:
                connection.execute(sqlalchemy.insert(_table).values(row))
        except IntegrityError:
            return False
        return True

    def _renew(self, name: str, owner: str, stop: threading.Event) -> None:
        ours = self._row(name) & (_table.c.value == owner)
        renewed = {"expires": self._now + self.lost_after}
        while not stop.wait(self.lost_after / 4):
            with self.engine.begin() as connection:
                connection.execute(sqlalchemy.update(_table).where(ours).values(renewed))

    def _row(self, name: str) -> sqlalchemy.ColumnElement[bool]:
        return (_table.c.scope == self.scope) & (_table.c.name == name)
