"""The processes that the chaos run kills: a broker, a database, one API and several workers, all real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import servers

LEASE_SECONDS = 4.0
MAX_ATTEMPTS = 8
ONCE = "worker-once"


@dataclass
class Member:
    """One process that is started again whenever it is found dead."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    #: How often it may be started again; None: always.
    starts_left: int | None = None

    def start(self) -> None:
        """Start it in a group of its own."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, env=self.env, stdout=log, stderr=subprocess.STDOUT, process_group=0
            )

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self.process.pid if self.process is not None else 0

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped by SIGSTOP)."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the process alone: its children must notice by themselves."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def engines(self) -> list[int]:
        """Its engine processes: they lead groups of their own."""
        with suppress(psutil.Error):
            children = psutil.Process(self.pid).children(recursive=True)
            return [child.pid for child in children if _leads_group(child.pid)]
        return []


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


@dataclass
class Cluster:
    """Everything of one run."""

    home: Path
    database_url: str
    valkey: servers.Valkey
    postgres: servers.Postgres | None
    port: int
    api: Member = field(init=False)
    workers: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Describe the members; `start` starts them."""
        (self.home / "logs").mkdir()
        argv = [sys.executable, "-m", "service.api_process"]
        self.api = Member("api", argv, self._environment("api"), self.home / "logs" / "api.log")

    def _environment(self, name: str) -> dict[str, str]:
        clean = {key: text for key, text in os.environ.items() if not key.startswith("OPTIPFAIR_")}
        settings: dict[str, Any] = {
            "data_dir": self.home / name,  # a folder of its own: nothing but the three servers is shared
            "secret_file": self.home / "secret",
            "models_dir": self.home / "models",
            "artifacts_url": self.home / "artifacts",
            "database_url": self.database_url,
            "broker_url": self.valkey.url,
            "port": self.port,
            "lease_seconds": LEASE_SECONDS,
            "heartbeat_seconds": 0.5,
            "sweep_seconds": 0.5,
            "republish_seconds": 3,
            "worker_timeout_seconds": 120,
            "max_attempts": MAX_ATTEMPTS,
            "grace_seconds": 1,
            "orphan_grace_seconds": 1,
            "min_free_bytes": 0,
            "threads": 1,
        }
        variables = {f"OPTIPFAIR_{key.upper()}": str(value) for key, value in settings.items()}
        return {**clean, **variables, "OPTIPFAIR_TEST_HOOKS": "1", "OMP_NUM_THREADS": "1"}

    def add_worker(self, *, once: int | None = None) -> None:
        """One more worker; with `once` one that ends after each job, and is started so often."""
        name = f"worker{len(self.workers)}" if once is None else ONCE
        argv = [sys.executable, "-m", "worker", *(() if once is None else ("--once", "60"))]
        member = Member(name, argv, self._environment(name), self.home / "logs" / f"{name}.log")
        member.starts_left = None if once is None else once - 1
        self.workers.append(member)
        member.start()

    def revive(self) -> None:
        """Start what was killed or has ended, if it may be started again."""
        for member in (self.api, *self.workers):
            if member.alive or member.starts_left == 0:
                continue
            if member.starts_left is not None:
                member.starts_left -= 1
            member.start()

    def jobs_of_once_workers(self) -> int:
        """How many workers that take one job have carried it out and ended."""
        log = self.home / "logs" / f"{ONCE}.log"
        return _count_events(log, "worker.ended", took_a_job=True) if log.exists() else 0

    def stop(self) -> None:
        """An ordered stop of the members."""
        for member in (*self.workers, self.api):
            if member.alive:
                os.kill(member.pid, signal.SIGCONT)
                os.kill(member.pid, signal.SIGTERM)
        for member in (*self.workers, self.api):
            if member.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    member.process.wait(20)
                with suppress(ProcessLookupError):
                    os.killpg(member.pid, signal.SIGKILL)
                member.process.wait()

    def logged(self, event: str) -> int:
        """How often the workers logged an event."""
        return sum(_count_events(member.log, event) for member in self.workers)


def _count_events(log: Path, event: str, **fields: object) -> int:
    wanted = {"event": event, **fields}

    def matches(line: str) -> bool:
        try:
            return wanted.items() <= json.loads(line).items()
        except (ValueError, AttributeError, TypeError):
            return False

    with log.open(errors="replace") as lines:
        return sum(map(matches, lines))


@contextmanager
def cluster(home: Path, backend: str, workers: int, *, once: int = 0) -> Iterator[Cluster]:
    """Servers and members of one run, all gone at the end; `once`: starts of a worker that takes one job."""
    with servers.valkey() as broker:
        if backend == "postgres":
            with servers.postgres_server() as postgres:
                made = Cluster(home, postgres.url, broker, postgres, servers.free_port())
                yield from _with_members(made, workers, once)
        else:
            url = f"sqlite:///{home / 'service.db'}"
            yield from _with_members(Cluster(home, url, broker, None, servers.free_port()), workers, once)


def _with_members(made: Cluster, workers: int, once: int) -> Iterator[Cluster]:
    from migrations import upgrade
    from service.bootstrap import check_secret

    check_secret(made.home / "secret")
    upgrade(made.database_url)
    try:
        made.api.start()
        for _ in range(workers):
            made.add_worker()
        if once:
            made.add_worker(once=once)
        wait_until(lambda: _listening(made.port), "the API to listen", 120)
        yield made
    finally:
        made.stop()


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Poll until the condition holds; TimeoutError otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
