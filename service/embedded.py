"""`optipfair-service serve`: broker, database, worker and HTTP on one machine, from one command."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from types import FrameType

from jobs.addresses import http_url, socket_path, socket_url
from jobs.database import connect
from jobs.handover import FROM_STDIN, api_document, child_environment, worker_document
from jobs.queue import SHORT
from jobs.repository import Repository
from jobs.settings import Settings
from migrations import upgrade
from service import broker
from service.bootstrap import check_secret, ensure_admin_key, make_folders
from service.children import ChildSpec, Supervisor
from service.lock import DataFolderLock
from worker.memory import machine_memory

#: Longest wait for the broker to load its append-only file.
BROKER_SECONDS = 60.0
#: A worker for short jobs gets the memory divided by this.
SHORT_SHARE = 8
_POLL_SECONDS = 0.1


def serve(settings: Settings, *, say: Callable[[str], None]) -> int:
    """Run until SIGTERM or Ctrl-C; 0 after an ordered stop.

    Raises:
        AlreadyRunningError: another service uses the data folder.
        OSError: the address is in use, or a folder can't be made.
    """
    make_folders(settings)
    with DataFolderLock(settings.data_dir), bind(settings.host, settings.port) as listener:
        settings = settle(settings, listener)
        check_secret(settings.secret_file)
        supervisor = Supervisor(say)
        stop = Stop(supervisor)
        try:
            return _run(settings, listener, supervisor, stop, say)
        finally:
            supervisor.stop()
            say("stopped")


class Stop:
    """Turns SIGTERM, Ctrl-C and a closed terminal into a flag; a second Ctrl-C kills the children at once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked.is_set():
            self._supervisor.kill()
        self.asked.set()


def _run(
    settings: Settings,
    listener: socket.socket,
    supervisor: Supervisor,
    stop: Stop,
    say: Callable[[str], None],
) -> int:
    if uses_embedded_broker(settings):
        _start_broker(settings, supervisor, stop)
    upgrade(settings.database_url)
    engine = connect(settings.database_url)
    ensure_admin_key(settings, Repository(engine, settings), say=say)
    engine.dispose()  # children must not share connections, and this process needs none
    if stop.asked.is_set():
        return 0
    first, later = worker_specs(settings)
    for spec in [*first, _api(settings, listener)]:
        supervisor.start(spec)
    announce = Announcement(settings, say)
    while not stop.asked.wait(_POLL_SECONDS):
        supervisor.check()
        announce.check()
        while later and announce.settled:  # side by side their starts would take twice as long
            supervisor.start(later.pop(0))
    say("stopping …")
    return 0


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, opened here and inherited: a restarted HTTP process loses no connection.

    Raises:
        OSError: with the address and what to do, if it can't be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            error.errno,
            f"can't listen on {host}:{port} ({error.strerror}): choose another address with --host/--port",
        ) from error


def settle(settings: Settings, listener: socket.socket) -> Settings:
    """Fill in what is known only now: the real port, and a URL that names it."""
    known: dict[str, object] = {"port": listener.getsockname()[1]}
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
    if "public_url" not in settings.model_fields_set:
        known["public_url"] = http_url(here.get(settings.host, settings.host), listener.getsockname()[1])
    return settings.model_copy(update=known)


def uses_embedded_broker(settings: Settings) -> bool:
    """Whether the broker is ours to run: its URL is the data folder's own socket."""
    return settings.broker_url == socket_url(socket_path(settings.data_dir))


def _start_broker(settings: Settings, supervisor: Supervisor, stop: Stop) -> None:
    folder, path = settings.data_dir / "broker", socket_path(settings.data_dir)
    broker.make_socket_folder(path)
    path.unlink(missing_ok=True)  # we hold the data folder's lock, so it is a dead service's
    child = supervisor.start(
        ChildSpec(
            name="broker",
            argv=broker.command(folder, path),
            env={"PATH": "/usr/bin:/bin"},
            log=settings.data_dir / "logs" / "broker.log",
            stop_order=1,
        )
    )
    deadline = time.monotonic() + BROKER_SECONDS
    while not broker.answers(path) and not stop.asked.is_set():
        if time.monotonic() > deadline or not child.alive:
            raise RuntimeError(f"the broker did not start; see {child.spec.log}")
        time.sleep(0.02)


def worker_specs(settings: Settings) -> tuple[list[ChildSpec], list[ChildSpec]]:
    """The workers for jobs of every length, and those for short jobs alone.

    The former share the cores, since threads that outnumber them crawl. A worker for short jobs is idle most
    of the time: reserving cores for it would slow every long job down, so its engine has one thread, and the
    scheduler finds the room. Of the memory it gets a fixed small part, since memory that is promised twice
    ends in a killed process; a short job that needs more goes to another worker.
    """
    memory = settings.memory_bytes or machine_memory()
    reserved = settings.short_workers * (memory // SHORT_SHARE) if settings.memory_bytes is None else 0
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    each = settings.memory_bytes or (memory - reserved) // settings.workers
    long = settings.model_copy(update={"threads": threads, "memory_bytes": each})
    short_memory = settings.memory_bytes or memory // SHORT_SHARE
    short = settings.model_copy(
        update={"threads": 1, "memory_bytes": short_memory, "worker_queues": SHORT, "device": "cpu"}
    )
    return (
        [_worker(long, _numbered("worker", number)) for number in range(settings.workers)],
        [_worker(short, _numbered("worker-short", number)) for number in range(settings.short_workers)],
    )


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number + 1}"


def _worker(settings: Settings, name: str) -> ChildSpec:
    return ChildSpec(
        name=name,
        argv=[sys.executable, "-m", "worker", FROM_STDIN],
        env=child_environment(),
        document=worker_document(settings),
        log=settings.data_dir / "logs" / f"{name}.log",
        stop_seconds=settings.grace_seconds + 10.0,
    )


def _api(settings: Settings, listener: socket.socket) -> ChildSpec:
    descriptor = listener.fileno()
    return ChildSpec(
        name="api",
        argv=[sys.executable, "-m", "service.api_process", FROM_STDIN, "--fd", str(descriptor)],
        env=child_environment(),
        document=api_document(settings),
        log=settings.data_dir / "logs" / "api.log",
        pass_fds=(descriptor,),
    )


class Announcement:
    """Says once that the service is ready, or after a while what it still lacks."""

    def __init__(self, settings: Settings, say: Callable[[str], None], patience: float = 60.0) -> None:
        self._probe = f"{http_url(settings.host, settings.port)}/readyz"
        self._url, self._key_file = settings.public_url, settings.data_dir / "admin.key"
        self._say, self._give_up = say, time.monotonic() + patience
        self._next = time.monotonic()
        self._done = False

    @property
    def settled(self) -> bool:
        """Whether the service was ready once, or should have been by now."""
        return self._done or self._give_up == float("inf")

    def check(self) -> None:
        """Look at `/readyz` twice a second until it has answered 200 once."""
        if self._done or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.5
        ready, detail = probe(self._probe)
        if ready:
            self._done = True
            self._say(f"ready: {self._url} (the admin key is in {self._key_file})")
        elif time.monotonic() > self._give_up:
            self._give_up = float("inf")
            self._say(f"not ready yet: {detail}")


def probe(url: str) -> tuple[bool, str]:
    """Whether a readiness URL answers 200, and what it says otherwise."""
    try:
        # on a machine with much else to do the answer takes more than a moment: it counts all the same
        with urllib.request.urlopen(url, timeout=2.0) as response:  # noqa: S310 - http to ourselves
            return response.status == 200, ""
    except urllib.error.HTTPError as error:
        with error:
            return False, _summary(error.read(4096))
    except OSError as error:
        return False, str(error)


def _summary(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return "the answer of /readyz is unreadable"
    return str(answer.get("detail") or answer)
