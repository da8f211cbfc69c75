"""Tells the database that this worker lives, and what it can run."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from worker.log import logger
from worker.services import Services

#: How often the models folder is looked at; an unchanged one costs a few stat calls.
SCAN_SECONDS = 2.0
#: After a beat that could not be written: no job is admitted for a worker that has long been unheard of.
RETRY_SECONDS = 1.0
#: In the work folder; touched after each beat, so that a container's health check need not ask the database.
ALIVE_FILE = "alive"


class Beats:
    """Two threads: one scans (hashing a new model may take minutes), one beats."""

    def __init__(self, services: Services, devices: Sequence[str], code_version: str) -> None:
        self._services, self._devices, self._code_version = services, list(devices), code_version
        self._interval = min(
            services.settings.heartbeat_seconds, services.settings.worker_timeout_seconds / 4
        )
        self._memory = services.memory_bytes
        self._models = services.inventory.scan()
        self._files = services.inventory.files()
        self._suites = services.inventory.suites()
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._scan_loop, name="scan", daemon=True),
            threading.Thread(target=self._beat_loop, name="beat", daemon=True),
        ]

    def start(self) -> None:
        """Beat from now on."""
        for thread in self._threads:
            thread.start()

    def poke(self) -> None:
        """Beat now: something has changed (this worker is shutting down)."""
        self._changed.set()

    def stop(self) -> None:
        """Say that this worker is gone, once no beat can come after it."""
        self._stop.set()
        self._changed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5.0)
        try:
            self._services.repository.worker_gone(self._services.worker_id)
        except Exception:
            logger.warning("worker.gone_not_written", exc_info=True)

    def _scan_loop(self) -> None:
        while not self._stop.wait(SCAN_SECONDS):
            try:
                inventory = self._services.inventory
                found = inventory.scan(), inventory.files(), inventory.suites()
            except Exception:  # this thread must not end: no new model would ever be seen
                logger.warning("inventory.scan_failed", exc_info=True)
                continue
            if found != (self._models, self._files, self._suites):
                self._models, self._files, self._suites = found
                self._changed.set()

    def _beat_loop(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            pause = self._interval if self._beat() else min(self._interval, RETRY_SECONDS)
            self._changed.wait(max(0.0, pause - (time.monotonic() - started)))
            self._changed.clear()

    def _beat(self) -> bool:
        """Beat once; whether it was written."""
        content: dict[str, Any] = {
            "queues": self._services.settings.queues,
            "devices": self._devices,
            "models": self._models,
            "files": self._files,
            "suites": self._suites,
            "allow_hub": self._services.settings.allow_hub,
            "code_version": self._code_version,
            "memory_bytes": self._memory,
            "draining": self._services.stopping.is_set(),
            "stalled": self._services.stalled.is_set(),
        }
        try:
            self._services.repository.worker_beat(self._services.worker_id, **content)
            (self._services.settings.work_dir / ALIVE_FILE).touch()
        except Exception:
            logger.warning("worker.beat_failed", exc_info=True)
            return False
        return True
