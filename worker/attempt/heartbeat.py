"""Keeps an attempt's lease alive while its supervisor waits, hashes and uploads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from worker.log import logger

#: What the database said last: "running", "cancelling", or "lost" when this attempt no longer holds the job.
RUNNING, CANCELLING, LOST = "running", "cancelling", "lost"


class Heartbeat:
    """Beats in a thread of its own; `status` says whether to go on.

    While the database can't be reached the attempt goes on until its lease must have run out: from then on
    another worker may have the job, so the status becomes `lost`.
    """

    def __init__(
        self,
        beat: Callable[[], str | None],
        watch: Callable[[], str | None],
        *,
        interval: float,
        lease: float,
        watch_interval: float = 1.0,
    ) -> None:
        """`beat` renews the lease and returns the job's state or None; `watch` only reads it."""
        self._beat, self._watch = beat, watch
        self._interval, self._lease, self._watch_interval = interval, lease, watch_interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._last_success = time.monotonic()
        self.status = RUNNING

    def __enter__(self) -> Heartbeat:
        """Begin; the claim itself counts as the first beat."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, and wait for a beat that is under way."""
        self._stop.set()
        self._thread.join()

    def pause(self) -> None:
        """Stop asking, as a frozen process would (test hooks only)."""
        self._stop.set()

    def _run(self) -> None:
        next_beat = time.monotonic() + self._interval
        while self.status != LOST and not self._stop.wait(min(self._watch_interval, self._interval)):
            due = time.monotonic() >= next_beat
            self._ask(self._beat if due else self._watch, renews=due)
            if due:
                next_beat = time.monotonic() + self._interval

    def _ask(self, question: Callable[[], str | None], *, renews: bool) -> None:
        try:
            answer = question()
        except Exception as error:
            logger.warning("heartbeat.failed", error=type(error).__name__)
            if time.monotonic() - self._last_success > self._lease:
                self.status = LOST
            return
        if renews:
            self._last_success = time.monotonic()
        self.status = answer if answer in {RUNNING, CANCELLING} else LOST
