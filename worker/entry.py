"""Builds a worker from its settings and runs it."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Sequence
from importlib import metadata
from multiprocessing.context import BaseContext
from pathlib import Path

from celery import signals

from jobs.artifacts import make_store
from jobs.database import connect
from jobs.logs import configure_logging
from jobs.repository import Repository
from jobs.settings import Settings
from worker import app, orphans
from worker.beats import Beats
from worker.cache import FolderCache
from worker.engine_process import Ended, EngineProcess, make_context, thread_environment
from worker.inventory import Inventory
from worker.log import logger
from worker.services import Services

#: The fork server imports torch first; on a loaded machine with a cold disk cache that takes a while.
PROBE_SECONDS = 180.0


def main() -> int:
    """Run a worker until SIGTERM; the exit code is Celery's."""
    settings = Settings()
    configure_logging(settings, "worker")
    # Before anything starts a process: the fork server and the engines inherit these.
    os.environ.update(thread_environment(os.cpu_count(), 1, settings.threads))
    services = make_services(settings)
    threading.Thread(target=orphans.clean_up, args=(services,), name="orphans", daemon=True).start()
    starter = Starter(services)
    signals.worker_ready.connect(starter.on_ready, weak=False)
    try:
        return app.run_worker(services)
    finally:
        starter.stop()


def make_services(settings: Settings) -> Services:
    """Connect to everything; the database and the broker may still be starting."""
    for folder in (settings.work_dir, settings.models_dir):
        folder.mkdir(parents=True, exist_ok=True)
    inventory = Inventory(
        settings.models_dir, settings.calibration_dir, settings.suites_dir, settings.work_dir / "models.json"
    )
    inventory.load()
    return Services(
        worker_id=worker_id(),
        settings=settings,
        repository=Repository(connect(settings.database_url), settings),
        store=make_store(settings),
        engines=make_context(),
        inventory=inventory,
        job_cache=FolderCache(settings.work_dir / "jobs", settings.model_cache_bytes),
    )


def worker_id() -> str:
    """A name that no other worker process has or had, on any machine."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:64]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


class Starter:
    """Begins to beat once Celery consumes and the fork server is warm: from then on a job would run."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ready = threading.Event()
        self._stopped = threading.Event()
        self._beats: Beats | None = None
        self._thread = threading.Thread(target=self._start, name="starter", daemon=True)
        self._thread.start()

    def on_ready(self, **_: object) -> None:
        """Celery's signal: the queues are being consumed."""
        self._ready.set()

    def _start(self) -> None:
        devices = probe_devices(self._services.engines, self._services.settings)
        version = self._services.settings.code_version or metadata.version("optipfair-service")
        beats = Beats(self._services, devices, version)
        self._ready.wait()
        if not self._stopped.is_set():
            self._beats = beats
            beats.start()
            logger.info("worker.ready", devices=devices, queues=self._services.settings.queues)

    def stop(self) -> None:
        """End the beats and take the worker off the list."""
        self._stopped.set()
        if self._beats is not None:
            self._beats.stop()


def probe_devices(engines: BaseContext, settings: Settings) -> Sequence[str]:
    """The devices that torch sees, asked of an engine process, which also warms the fork server."""
    log = settings.work_dir / "probe.log"
    task = {"kind": "probe", "spec": {}, "output": str(settings.work_dir), "device": settings.device}
    engine = EngineProcess(engines, task, Path(log))
    try:
        message = engine.receive(PROBE_SECONDS)
    finally:
        engine.stop()
    if message is None or isinstance(message, Ended) or message.get("type") != "result":
        logger.error("worker.probe_failed", answer=str(message))
        return ["cpu"]
    metrics = message["metrics"]
    return list(metrics["devices"]) if isinstance(metrics, dict) else ["cpu"]
