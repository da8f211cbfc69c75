"""The launcher: torch's elastic agent, in a process of its own between the host and the ranks.

``python -m optipfair_engine.processes.launch FOLDER SIZE``. It ends, and its ranks with it, when its standard
input is closed: whatever becomes of the host, nobody is left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.utils.api import macros
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from optipfair_engine.jsonable import write_json
from optipfair_engine.processes.rank import run_rank

FAILURES_FILE = "failures.json"
_BACKEND = "one-machine"
_own_store: Any = dist.HashStore  # type: ignore[attr-defined]  # public, but not exported to mypy
#: How long ranks that another one's end has stopped may take to end by themselves.
_GRACE_SECONDS = 3


def main(folder: str, size: str) -> int:
    """Run the ranks; the exit code, with the signals and codes of ranks that failed in a file."""
    threading.Thread(target=_end_with_host, daemon=True, name="host-watch").start()
    rendezvous_handler_registry.register(_BACKEND, _OneMachine)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(size),
        run_id=str(uuid.uuid4()),
        rdzv_backend=_BACKEND,
        max_restarts=0,
        # torch, transformers and this code are loaded once, in memory that all ranks share
        start_method="spawn" if sys.platform == "darwin" else "fork",
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder, "launcher"))),
        shutdown_timeout=_GRACE_SECONDS,
    )
    _preload()
    try:
        # the launcher fills in what looks like a macro: a dollar of the folder's own is written twice
        elastic_launch(config, run_rank)(folder.replace("$", "$$"), macros.local_rank, size)
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_json(Path(folder, FAILURES_FILE), codes)
        return 1
    return 0


def _preload() -> None:
    """Load what every rank needs before there are any."""
    import accelerate
    import transformers.models.auto.modeling_auto

    del accelerate, transformers


def _end_with_host() -> None:
    # not sys.stdin: the lock of its buffer would be held in ranks, too
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * _GRACE_SECONDS)
    os._exit(1)  # ranks end when they see that


class _OneMachine(RendezvousHandler):
    """A rendezvous of one node with itself, which opens no port: torch's own ones listen to any machine."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id

    def get_backend(self) -> str:
        return _BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        # ranks don't ask at that address: they meet by a file
        return RendezvousInfo(_own_store(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could come."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
