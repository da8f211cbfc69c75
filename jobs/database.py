"""The engine to the database: SQLite on one host or Postgres, behind the same repository."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from jobs.patience import WORK, Patience

_READ_ONLY = "optipfair_read_only"


#: What Postgres says: "disk_full".
_SQLSTATE_DISK_FULL = "53100"


def is_disk_full(error: BaseException) -> bool:
    """Whether a database refused because its disk is full: it answers, but cannot write."""
    cause = getattr(error, "orig", error)
    if getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return True
    return bool(getattr(cause, "sqlstate", None) == _SQLSTATE_DISK_FULL)


class now_ms(FunctionElement[int]):  # noqa: N801 - reads like the SQL function that it is
    """The database's clock in milliseconds since the epoch; constant within one statement."""

    type = BigInteger()
    name = "now_ms"
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_sqlite(_element: object, _compiler: object, **_: object) -> str:
    # Debian 12's SQLite 3.40 returns NULL for unixepoch('now', 'subsec').
    return (
        "(CAST(strftime('%s', 'now') AS INTEGER) * 1000"
        " + CAST(substr(strftime('%Y-%m-%d %H:%M:%f', 'now'), 21, 3) AS INTEGER))"
    )


@compiles(now_ms, "postgresql")
def _now_postgresql(_element: object, _compiler: object, **_: object) -> str:
    # statement_timestamp() is stable, so an index can answer comparisons with it; clock_timestamp() is not.
    return "CAST(floor(extract(epoch FROM statement_timestamp()) * 1000) AS BIGINT)"


def connect(url: str, *, pool_size: int = 5, patience: Patience = WORK) -> Engine:
    """An engine for `sqlite:///path` or `postgresql://…` (psycopg 3).

    On SQLite: WAL, foreign keys, a busy timeout, synchronous=FULL, and BEGIN IMMEDIATE for writers, so
    that two writers wait for each other instead of failing in mid-transaction. On Postgres: `patience` bounds
    connecting, each answer, and the wait for a pooled connection.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, pool_size=pool_size, max_overflow=10)
        event.listen(engine, "connect", partial(_prepare_sqlite, patience))
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(
            parsed, pool_size=pool_size, max_overflow=10, pool_pre_ping=True, pool_timeout=patience.pool
        )
        event.listen(engine, "do_connect", partial(_connect_postgres, patience))
        return engine
    raise ValueError(f"database_url: {parsed.get_backend_name()} is not supported; use sqlite or postgresql")


def _connect_postgres(
    patience: Patience, _dialect: object, _record: object, args: Any, kwargs: dict[str, Any]
) -> Any:
    from jobs.postgres import connect_patiently  # SQLite needs no driver of Postgres

    return connect_patiently(patience, *args, **kwargs)


def _prepare_sqlite(patience: Patience, connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not start transactions by itself: BEGIN is ours
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={round(patience.lock * 1000)}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if not connection.get_execution_options().get(_READ_ONLY, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def reader_of(engine: Engine) -> Engine:
    """The same pool for single reads: no write lock, no transaction, every statement sees the newest commit.

    The options are set once here, because setting them on every connection would cost as much as a read.
    """
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    return engine.execution_options(**{_READ_ONLY: True})


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for single reads (see `reader_of`)."""
    with reader_of(engine).connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction for writes: on SQLite it holds the write lock from its first moment."""
    with engine.begin() as connection:
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction whose statements all see the database as it was at the first one."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.begin() as connection:  # on SQLite the write lock does it
        yield connection


@contextmanager
def taking_long(connection: Connection, seconds: float) -> Iterator[None]:
    """Let the statements of this transaction take so long, which the engine's patience would not."""
    driver = connection.connection.driver_connection
    if driver is None or connection.dialect.name != "postgresql":
        yield
        return
    usual, driver.answer_seconds = driver.answer_seconds, seconds
    try:
        connection.execute(text(f"SET LOCAL statement_timeout = {round(seconds * 1000)}"))
        yield
    finally:
        driver.answer_seconds = usual
