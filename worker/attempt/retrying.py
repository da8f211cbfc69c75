"""Calls to a database that may be away: made again for as long as the attempt may keep its job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


def patiently(call: Callable[[], T], *, seconds: float, log: structlog.stdlib.BoundLogger) -> T:
    """What the call gives; while the database is away it is made again, for so long.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: it has been away for too long.
    """
    give_up = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return call()
        except SQLAlchemyError:
            if time.monotonic() > give_up:
                raise
            log.warning("database.retry", exc_info=True)
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
