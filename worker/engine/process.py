"""The process of one attempt: forked from a server that has torch loaded, ended by killing its process group.

The Celery process stays free of torch: it talks to the engine's process by JSON lines over a pipe. JSON and
not pickle, because the engine reads files that others supplied, and what it says must not be able to run code
here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

Message = dict[str, object]
SECRET_PREFIXES = ("OPTIPFAIR_", "AWS_", "PG", "REDIS", "CELERY_", "OTEL_")
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_starting = threading.Lock()


def make_context() -> multiprocessing.context.BaseContext:
    """The start method of engine processes: a preloaded fork server; spawn on macOS."""
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.engine.preload"])
    return context


def secret_names(environ: Iterable[str]) -> list[str]:
    """The variables that configure the service or hold a credential: no engine process gets them."""
    return [name for name in environ if name.startswith(SECRET_PREFIXES)]


def start_server() -> None:
    """Start the fork server if it does not run, with an environment without secrets.

    They are left out at its start, not deleted in it: /proc shows what a process was started with. Other
    threads miss them for that moment; what they need they have read before, or try again.
    """
    if sys.platform == "darwin":
        return
    with _starting:
        kept = {name: os.environ.pop(name) for name in secret_names(list(os.environ))}
        try:
            forkserver.ensure_running()
        finally:
            os.environ.update(kept)


def thread_environment(cores: int | None, processes: int, threads: int | None) -> dict[str, str]:
    """OpenMP's variables for one of `processes` concurrent engine processes.

    Two OpenMP threads that spin on a busy machine make small matrix products 10 to 200 times slower, so the
    cores are divided and waiting threads sleep.
    """
    count = threads or max(1, (cores or 1) // max(1, processes))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(names, str(count)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


@dataclass(frozen=True)
class Ended:
    """How an engine process ended; `exitcode` is negative for a signal, 255 if its fork server died first."""

    exitcode: int


class EngineProcess:
    """Runs `worker.engine.main.run` in a process and group of its own, and hears what it reports."""

    def __init__(
        self, context: multiprocessing.context.BaseContext, task: Mapping[str, object], log: Path
    ) -> None:
        from worker.engine import main as engine_main

        self._receiver, sender = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=engine_main.run, args=(sender, json.dumps(task), str(log)), name="optipfair-engine"
        )
        try:
            start_server()  # one that died would be started anew by the next line, with all the secrets
            self._process.start()
        finally:
            sender.close()

    @property
    def pid(self) -> int:
        """The process's id, which is also the id of its group once it has begun."""
        return self._process.pid or 0

    def receive(self, timeout: float) -> Message | Ended | None:
        """The next message; `Ended` once the process is gone and all is read; None after `timeout`."""
        ready = wait([self._receiver, self._process.sentinel], timeout)
        if self._receiver in ready:
            message = self._read()
            if message is not None:
                return message
            self._process.join(5.0)
            return Ended(self._exitcode())
        if self._process.sentinel in ready:
            return self._read() if self._receiver.poll(0) else Ended(self._exitcode())
        return None

    def _read(self) -> Message | None:
        try:
            message = json.loads(self._receiver.recv_bytes(_MAX_MESSAGE_BYTES))
        except (EOFError, OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def _exitcode(self) -> int:
        code = self._process.exitcode
        return 255 if code is None else code

    def stop(self, grace: float = 2.0) -> None:
        """End the process and everything in its group: SIGTERM, then SIGKILL; safe to call again."""
        if self._process.is_alive():
            self._signal(signal.SIGTERM)
            self._process.join(grace)
        # Always: a grandchild may outlive its parent, and the group's id can't be reused while it has
        # members.
        self._signal(signal.SIGKILL)
        self._process.join(5.0)
        self._receiver.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        if self._process.is_alive():
            # Before its first statement the process has no group of its own yet.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Reporting:
    """The engine side of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, object]) -> None:
        """Send one message; blocks while the supervisor is busy, so that nothing piles up."""
        with self._lock:
            self._connection.send_bytes(json.dumps(message, default=str).encode())


def become_group_leader() -> None:
    """Give this process a group of its own and tie its life to its supervisor's."""
    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True, name="parent-watch").start()


def _die_with(sentinel: int) -> None:
    # PR_SET_PDEATHSIG is no help: the kernel's parent of this process is the fork server, not the supervisor.
    wait([sentinel])
    os.killpg(os.getpgid(0), signal.SIGKILL)
