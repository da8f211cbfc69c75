"""Connections to Postgres that never wait for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen

from jobs.patience import Budget, Patience, current_budget

RV = TypeVar("RV")
#: A transaction whose client has been cut off holds its locks no longer than this (the server's `idle_in…`).
_IDLE_TRANSACTION_MS = 30_000


class PatientConnection(psycopg.Connection[Any]):
    """A connection to Postgres that closes itself when an answer is overdue.

    The server's `statement_timeout` does not help where no byte comes through, and neither `tcp_user_timeout`
    nor keepalives do where a frozen server's kernel still acknowledges packets.
    """

    answer_seconds: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait as psycopg does, but at most `answer_seconds`, and no longer than the request's budget lasts.

        Raises:
            psycopg.OperationalError: the answer is overdue; the connection is closed.
        """
        if timeout is not None or self.answer_seconds is None:
            return super().wait(gen, interval=interval, timeout=timeout)
        with _spending() as budget:
            limit = max(0.0, min(self.answer_seconds, budget.seconds))
            try:
                return super().wait(gen, interval=interval, timeout=limit)
            except errors._WaitTimeout:
                self.close()
                raise psycopg.OperationalError(
                    f"the database did not answer within {limit:.1f} seconds"
                ) from None


def connect_patiently(patience: Patience, *args: Any, **kwargs: Any) -> PatientConnection:
    """Connect as `psycopg.connect` does, with the limits of `patience` on this side and in the server.

    What the database's URL says of them itself wins.
    """
    with _spending() as budget:
        if budget.seconds <= 0:
            raise psycopg.OperationalError("the database has taken too long for this request already")
        connection = PatientConnection.connect(*args, **{**_limits(patience), **kwargs})
    connection.answer_seconds = patience.answer
    if patience.answer is not None:
        _limit_server(connection, patience.answer)
    return connection


@contextmanager
def _spending() -> Iterator[Budget]:
    """Take the time of this block from the request's budget."""
    budget, began = current_budget(), time.monotonic()
    try:
        yield budget
    finally:
        budget.seconds -= time.monotonic() - began


def _limits(patience: Patience) -> dict[str, Any]:
    """Parameters of libpq. Keepalives are for idle connections, `tcp_user_timeout` is for sent bytes."""
    limits = {"connect_timeout": round(patience.connect)}
    limits |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    if patience.answer is not None:
        limits["tcp_user_timeout"] = round(patience.answer * 1000)
    return limits


def _limit_server(connection: PatientConnection, answer_seconds: float) -> None:
    """What its client no longer waits for must not go on holding locks.

    A statement of its own, because poolers between refuse the connection parameter `options`.
    """
    milliseconds = round(answer_seconds * 1000)
    connection.autocommit = True
    connection.execute(
        f"SET statement_timeout = {milliseconds};"
        f" SET idle_in_transaction_session_timeout = {_IDLE_TRANSACTION_MS}".encode()
    )
    connection.autocommit = False
