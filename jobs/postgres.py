"""Connections to Postgres that never wait for ever."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen

from jobs.patience import Patience

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
        """Wait as psycopg does, but at most `answer_seconds`.

        Raises:
            psycopg.OperationalError: the answer is overdue; the connection is closed.
        """
        if timeout is not None or self.answer_seconds is None:
            return super().wait(gen, interval=interval, timeout=timeout)
        try:
            return super().wait(gen, interval=interval, timeout=self.answer_seconds)
        except errors._WaitTimeout:
            self.close()
            raise psycopg.OperationalError(
                f"the database did not answer within {self.answer_seconds:g} seconds"
            ) from None


def connect_patiently(patience: Patience, *args: Any, **kwargs: Any) -> PatientConnection:
    """Connect as `psycopg.connect` does, with the limits of `patience` on this side and in the server.

    What the database's URL says of them itself wins.
    """
    connection = PatientConnection.connect(*args, **{**_limits(patience), **kwargs})
    connection.answer_seconds = patience.answer
    if patience.answer is not None:
        _limit_server(connection, patience.answer)
    return connection


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
