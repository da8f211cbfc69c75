"""The engine's side of an attempt: what it tells its supervisor, and that it ends with it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def warnings_told(reporting: Reporting) -> Iterator[None]:
    """Within the block, warnings of libraries are told to the supervisor, for its log, once each."""
    told: set[str] = set()
    show = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        text = f"{category.__name__}: {message}"
        if text not in told:
            told.add(text)
            reporting.send({"type": "warning", "text": text})
        show(message, category, *place, **more)  # type: ignore[arg-type]

    warnings.showwarning = tell
    try:
        yield
    finally:
        warnings.showwarning = show
