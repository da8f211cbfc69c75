"""What runs inside an engine process: the job, with its errors sorted into the user's and the machine's."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from worker import test_hooks
from worker.engine.failures import describe, outline
from worker.engine.reporting import Reporting, become_group_leader, warnings_told

#: Exit codes are for the log only; the supervisor goes by the message, and by the signal if there was none.
EXIT_OK, EXIT_ERROR = 0, 1


def run(connection: Connection, task_json: str, log: str) -> None:
    """Run one task and report its progress, then its result or its error, over the connection."""
    become_group_leader()
    reporting = Reporting(connection)
    task = json.loads(task_json)
    try:
        _redirect_output(Path(log))
        test_hooks.in_engine(task.get("hooks", {}))
        reporting.send({"type": "result", "metrics": _perform(task, reporting)})
    except BaseException as error:
        with suppress(OSError):  # on a full disk the message says it all the same
            print(outline(error), file=sys.stderr)
        reporting.send({"type": "error", **describe(error), "trace": outline(error)})
        _flush()
        os._exit(EXIT_ERROR)
    _flush()
    # Skip interpreter shutdown: freeing a model tensor by tensor takes seconds and changes nothing.
    os._exit(EXIT_OK)


def _perform(task: dict[str, object], reporting: Reporting) -> dict[str, object]:
    from worker.engine import runners

    def report(stage: str, done: int, total: int, message: str) -> None:
        reporting.send({"type": "progress", "stage": stage, "done": done, "total": total, "message": message})
        test_hooks.after_progress(task.get("hooks", {}), stage, done)

    def announce(what: str, data: Mapping[str, object]) -> None:
        reporting.send({"type": "announcement", "what": what, "data": dict(data)})

    with warnings_told(reporting):
        return runners.perform(task, report, announce)


def _redirect_output(log: Path) -> None:
    # Prints and warnings of libraries belong to the attempt, not to the worker's structured log.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
