"""Whoever beats must work: notices that this worker takes no job though jobs wait for it, and mends that.

A worker is not well when it has had nothing to do for `stall_seconds`, a job of its queues was published at
least that long ago, and the broker holds messages in those queues, which any working consumer would take (one
that it cannot run it takes too, and declines). A broker or a database that does not answer proves nothing.

First the consumer connects anew, with a new channel. If it still takes nothing a little later, this process
ends, so that its supervisor starts another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from jobs.queue import Publisher
from worker.log import logger
from worker.services import Services

#: The exit code of a worker that could not mend itself.
EXIT_STALLED = 70
#: So long a new connection has for taking a message, if `stall_seconds` is not even shorter.
HELP_SECONDS = 15.0
#: Two looks after each other must find the same, or a message on its way would look like one that lies.
_LOOKS = 2
_MAX_PAUSE_SECONDS = 5.0
_GONE_SECONDS = 1.5


class Vigil:
    """Looks every few seconds, on a thread of its own."""

    def __init__(
        self,
        services: Services,
        restart_consumer: Callable[[], None],
        *,
        changed: Callable[[], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """`restart_consumer` may be called from any thread; `changed` is told when `stalled` changes."""
        self._services, self._restart, self._changed, self._end = services, restart_consumer, changed, end
        self._bound = services.settings.stall_seconds
        self._broker = Publisher(services.settings)
        self._found = 0
        self._restarted_at = 0.0

    def start(self) -> None:
        """Keep watch until the worker stops."""
        threading.Thread(target=self._run, name="vigil", daemon=True).start()

    def _run(self) -> None:
        while not self._services.stopping.wait(min(self._bound / 4, _MAX_PAUSE_SECONDS)):
            self.look()

    def look(self) -> None:
        """Look once, and act on it."""
        if not self._leaves_jobs_waiting():
            self._found = 0
            self._say(stalled=False)
            return
        self._found += 1
        if self._found < _LOOKS:
            return
        if not self._services.stalled.is_set():
            self._say(stalled=True)
            self._restarted_at = time.monotonic()
            self._restart()
        elif time.monotonic() - self._restarted_at >= min(self._bound, HELP_SECONDS):
            self._give_up()

    def _leaves_jobs_waiting(self) -> bool:
        if self._services.activity.idle_seconds() < self._bound:
            return False
        queues = self._services.settings.queues
        try:
            return (
                self._services.repository.published_for(queues, self._bound)
                and self._broker.waiting(queues) > 0
            )
        except Exception as error:  # a neighbour that is away is not this worker's fault
            logger.debug("vigil.blind", error=type(error).__name__)
            return False

    def _say(self, *, stalled: bool) -> None:
        if stalled == self._services.stalled.is_set():
            return
        if stalled:
            self._services.stalled.set()
            logger.error("worker.stalled", idle_seconds=round(self._services.activity.idle_seconds(), 1))
        else:
            self._services.stalled.clear()
            logger.info("worker.recovered")
        self._changed()

    def _give_up(self) -> None:
        with self._services.activity.held() as idle:
            if not idle:  # it has just taken one
                return
            logger.critical("worker.gives_up", exit_code=EXIT_STALLED)
            self._leave()
            self._end(EXIT_STALLED)

    def _leave(self) -> None:
        """Take the beat's row away, if the database answers quickly."""
        gone = threading.Thread(
            target=self._services.repository.worker_gone, args=(self._services.worker_id,), daemon=True
        )
        gone.start()
        gone.join(_GONE_SECONDS)
