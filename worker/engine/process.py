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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from worker.engine import main as engine_main
from worker.engine.server import start_server

Message = dict[str, object]
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Ended:
    """How an engine process ended; `exitcode` is negative for a signal, 255 if its fork server died first."""

    exitcode: int


class EngineProcess:
    """Runs `worker.engine.main.run` in a process and group of its own, and hears what it reports."""

    def __init__(
        self, context: multiprocessing.context.BaseContext, task: Mapping[str, object], log: Path
    ) -> None:
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
