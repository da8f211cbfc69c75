"""The engine's side of an attempt: what it tells its supervisor, and that it ends with it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait


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
