"""Builds a worker from its settings and runs it."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from multiprocessing.context import BaseContext

from celery import signals

from jobs.artifacts import make_store
from jobs.database import connect
from jobs.logs import configure_logging
from jobs.repository import Repository
from jobs.settings import Settings
from worker import app, orphans
from worker.beats import Beats
from worker.consumer import ConsumerHandle
from worker.engine.process import Ended, EngineProcess, Message
from worker.inputs.cache import FolderCache
from worker.inputs.inventory import Inventory
from worker.log import logger
from worker.once import stop_on_signals, take_one
from worker.services import Services
from worker.tracing import configure_tracing
from worker.vigil import Vigil

#: The fork server imports torch first; on a loaded machine with a cold disk cache that takes a while.
PROBE_SECONDS = 180.0
PROBE_TRIES = 3


def run(settings: Settings, engines: BaseContext, *, once: float | None = None) -> int:
    """Run a worker with these settings until SIGTERM; the exit code is Celery's.

    `engines` is how engine processes are started. `once`: take one job, wait at most so many seconds for it,
    and end with 0.
    """
    configure_logging(settings, "worker")
    configure_tracing(settings)
    services = make_services(settings, engines)
    threading.Thread(target=orphans.keep_clean, args=(services,), name="orphans", daemon=True).start()
    # Consume only when the fork server is warm: until then another worker is the better place for a job.
    devices = probe_devices(services.engines, settings)
    beats = Beats(services, devices, services.code_version)
    if once is not None:
        return _run_once(services, beats, once)
    consumer = ConsumerHandle()
    vigil = Vigil(services, consumer.restart, changed=beats.poke)

    def on_ready(**_: object) -> None:
        beats.start()
        vigil.start()
        logger.info("worker.ready", devices=devices, queues=settings.queues)

    def on_shutdown(**_: object) -> None:
        services.stopping.set()
        beats.poke()  # from now on no job is meant for this worker

    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    try:
        return app.run_worker(services, consumer)
    finally:
        beats.stop()


def _run_once(services: Services, beats: Beats, wait_seconds: float) -> int:
    stop_on_signals(services)
    beats.start()
    logger.info("worker.ready", once=True, queues=services.settings.queues)
    try:
        took = take_one(services, wait_seconds)
    finally:
        services.stopping.set()
        beats.stop()
    logger.info("worker.ended", took_a_job=took)
    return 0


def make_services(settings: Settings, engines: BaseContext) -> Services:
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
        engines=engines,
        inventory=inventory,
        job_cache=FolderCache(settings.work_dir / "jobs", settings.model_cache_bytes),
    )


def worker_id() -> str:
    """A name that no other worker process has or had, on any machine."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:64]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def probe_devices(engines: BaseContext, settings: Settings) -> list[str]:
    """The devices that torch sees, asked of an engine process, which also warms the fork server.

    Raises:
        RuntimeError: no engine process answers; without one no job would run.
    """
    for _ in range(PROBE_TRIES):
        answer = _probe(engines, settings)
        if isinstance(answer, dict) and answer.get("type") == "result":
            metrics: dict[str, list[str]] = answer["metrics"]  # type: ignore[assignment]
            return metrics["devices"]
        logger.warning("worker.probe_failed", answer=str(answer))
    raise RuntimeError("no engine process starts; see probe.log in the work folder")


def _probe(engines: BaseContext, settings: Settings) -> Message | Ended | None:
    task = {"kind": "probe", "spec": {}, "output": str(settings.work_dir), "device": settings.device}
    engine = EngineProcess(engines, task, settings.work_dir / "probe.log")
    try:
        return engine.receive(PROBE_SECONDS)
    finally:
        engine.stop()
