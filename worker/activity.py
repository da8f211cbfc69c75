"""Whether this worker is dealing with a message, and since when it is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Activity:
    """Since when this worker has had nothing to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._since = time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A message is being dealt with."""
        with self._lock:
            self._busy = True
        try:
            yield
        finally:
            with self._lock:
                self._busy, self._since = False, time.monotonic()

    def idle_seconds(self) -> float:
        """How long nothing has been taken; 0 while at work."""
        with self._lock:
            return 0.0 if self._busy else time.monotonic() - self._since

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether it is idle; meanwhile no work begins."""
        with self._lock:
            yield not self._busy
