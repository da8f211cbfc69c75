"""What runs inside an engine process: the job, with its errors sorted into the user's and the machine's."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from optipfair_engine.errors import EngineError
from optipfair_engine.headers import HeaderError
from worker import test_hooks
from worker.engine_process import Reporting, become_group_leader
from worker.hub import HubUnavailableError

#: Exit codes are for the log only; the supervisor goes by the message, and by the signal if there was none.
EXIT_OK, EXIT_ERROR = 0, 1


def run(connection: Connection, task_json: str, log: str) -> None:
    """Run one task and report its progress, then its result or its error, over the connection."""
    become_group_leader()
    _redirect_output(Path(log))
    reporting = Reporting(connection)
    task = json.loads(task_json)
    try:
        test_hooks.in_engine(task.get("hooks", {}))
        reporting.send({"type": "result", "metrics": _perform(task, reporting)})
    except BaseException as error:
        traceback.print_exc()
        reporting.send({"type": "error", **describe(error)})
        _flush()
        os._exit(EXIT_ERROR)
    _flush()
    # Skip interpreter shutdown: freeing a model tensor by tensor takes seconds and changes nothing.
    os._exit(EXIT_OK)


def _perform(task: dict[str, object], reporting: Reporting) -> dict[str, object]:
    from worker import runners

    def report(stage: str, done: int, total: int, message: str) -> None:
        reporting.send({"type": "progress", "stage": stage, "done": done, "total": total, "message": message})

    return runners.perform(task, report)


def describe(error: BaseException) -> dict[str, object]:
    """Code, message and whether another attempt could help. Messages of unforeseen errors stay in the log."""
    if is_full_disk(error):
        return {"code": "storage_full", "message": "no space is left for the job's files", "retry": False}
    if isinstance(error, EngineError | HeaderError):
        return {"code": error.code, "message": str(error), "retry": False}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return {"code": "out_of_memory", "message": "the engine ran out of memory", "retry": True}
    if isinstance(error, HubUnavailableError):
        return {"code": "hub_unavailable", "message": str(error), "retry": True}
    return {
        "code": "engine_failed",
        "message": f"the engine failed with {type(error).__name__}; the worker's log has the details",
        "retry": False,
    }


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk; safetensors reports one by its text only."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return "No space left on device" in str(error) or is_full_disk(error.__cause__ or error.__context__)


def _redirect_output(log: Path) -> None:
    # Prints and warnings of libraries belong to the attempt, not to the worker's structured log.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
