"""The server that other tests share answers, and keeps its databases apart."""

import psycopg2
import pytest


def _run(dsn, statement):
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


def test_every_database_is_new_and_empty(postgres_server):
    first, second = (postgres_server.dsn(postgres_server.new_database()) for _ in range(2))
    _run(first, "CREATE TABLE t (x integer)")
    count = "SELECT count(*) FROM information_schema.tables WHERE table_name = 't'"
    assert _run(first, count) == [(1,)]
    assert _run(second, count) == [(0,)]


def test_a_wrong_password_is_refused(postgres_server):
    dsn = postgres_server.dsn().replace(postgres_server.password, "wrong")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(dsn)
