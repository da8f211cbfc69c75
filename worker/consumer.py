"""Celery's consumer from other threads: it can be made to connect anew, and tests can break it."""

from __future__ import annotations

import time
from typing import Any

from worker.log import logger


class ConsumerHandle:
    """The consumer of a Celery worker; it runs on the event loop of the main thread."""

    def __init__(self) -> None:
        self._worker: Any = None

    def attach(self, worker: Any) -> None:
        """`worker`: Celery's."""
        self._worker = worker

    def restart(self) -> None:
        """Make the consumer meet an error as of a lost connection: it then connects anew.

        Where its event loop is blocked nothing happens.
        """
        logger.warning("consumer.restarts")
        self._worker.consumer.hub.call_soon(_lose_connection)

    def deafen(self) -> None:
        """For tests: this connection's channel never asks for a message again."""
        self._worker.consumer.task_consumer.channel.qos.can_consume = lambda: False

    def block(self) -> None:
        """For tests: the event loop does nothing any more."""
        self._worker.consumer.hub.call_soon(time.sleep, 10**6)


def _lose_connection() -> None:
    raise ConnectionResetError("the consumer took no message though some wait: connecting anew")
