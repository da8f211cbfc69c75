"""The host's side: it starts the launcher, hears how far the ranks are, and says what became of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from optipfair_engine import errors
from optipfair_engine.errors import EngineError, ProcessLostError
from optipfair_engine.processes.task import Task
from optipfair_engine.progress import Announcer, Reporter

if TYPE_CHECKING:
    from optipfair_engine.calibration.text import Batch

#: What the launcher and the ranks wrote to their standard error.
_SAID_FILE = "said.txt"
_FAILURES_FILE = "failures.json"
#: How long the launcher may take to end its ranks when it is told to.
_STOP_SECONDS = 15.0


def run_ranks(
    task: Task,
    batches: Sequence[Batch],
    size: int,
    folder: Path,
    report: Reporter,
    announce: Announcer,
) -> None:
    """Have ``size`` ranks do a task, until all of them are done.

    Args:
        task: what they do.
        batches: of the whole calibration, of which each takes its share.
        size: how many.
        folder: an empty folder for what they are told and say.
        report: progress, as the first rank tells it.
        announce: news, as the first rank tells them.

    Raises:
        EngineError: what a rank raised, of the same class.
        ProcessLostError: a rank ended by a signal, or by an error that isn't the engine's.
        MemoryError, OSError: memory or the disk failed a rank.
    """
    task.write(folder, batches)
    command = [sys.executable, "-m", "optipfair_engine.processes.launch", str(folder), str(size)]
    with (folder / _SAID_FILE).open("wb") as said, _launched(command, said) as launcher:
        for line in launcher.stdout or ():
            _hear(line, report, announce)
        code = launcher.wait()
    if code != 0:
        raise _error_of(folder, size, code)


@contextmanager
def _launched(command: list[str], said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher, which ends with the block, whatever ends that."""
    launcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
    try:
        yield launcher
    finally:
        for pipe in (launcher.stdin, launcher.stdout):
            if pipe is not None:
                pipe.close()
        try:
            launcher.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()  # its ranks see that, and end
            launcher.wait()


def _hear(line: bytes, report: Reporter, announce: Announcer) -> None:
    with suppress(ValueError):
        told = json.loads(line)
        if "report" in told:
            report(*told["report"])
        elif "announce" in told:
            announce(*told["announce"])


def _error_of(folder: Path, size: int, code: int) -> Exception:
    """What went wrong first: an error that explains itself, then a rank that was killed, then the rest."""
    found = [_read(folder / f"error-{rank}.json") for rank in range(size)]
    told = {rank: error for rank, error in enumerate(found) if error is not None}
    for error in told.values():
        known = _known_error(error)
        if known is not None:
            return known
    for name, ended in (_read(folder / _FAILURES_FILE) or {}).items():
        if ended < 0:
            return ProcessLostError(_lost(int(name), size, -ended))
    for rank, error in told.items():
        return ProcessLostError(f"process {rank + 1} of {size} failed with {error['type']}")
    return ProcessLostError(f"the launcher of {size} processes ended with exit code {code}")


def _lost(rank: int, size: int, number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    why = ", most often because memory ran out" if name == "SIGKILL" else ""
    return f"process {rank + 1} of {size} was ended by {name}{why}: the others were stopped"


def _known_error(error: dict[str, Any]) -> Exception | None:
    """The error as it was raised, if it explains itself; without what only its own process knew."""
    message = str(error["message"])
    if error["type"] == "MemoryError":
        return MemoryError(message)
    if error["errno"] is not None:
        return OSError(error["errno"], message)
    known = getattr(errors, error["type"], None)
    if not (isinstance(known, type) and issubclass(known, EngineError)):
        return None
    raised = known(message)
    raised.code = error["code"] or raised.code
    return raised


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
