"""Errors of an engine process, sorted into the user's, which would come again, and the machine's."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator

from optipfair_engine.errors import EngineError, ProcessLostError, causes, is_out_of_memory, system_says
from optipfair_engine.headers import HeaderError
from worker.inputs.cache import FULL
from worker.inputs.hub import HubUnavailableError

#: How many of the innermost frames of an error are logged.
_FRAMES = 12
#: Signs of failing disks; safetensors has no types or numbers for them.
_DISK_SIGNS = ("Input/output error", "os error 5)", "Stale file handle")


class MachineError(Exception):
    """The machine failed, not the job: another attempt may succeed. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def describe(error: BaseException) -> dict[str, object]:
    """Code, message and whether another attempt could help. Messages of unforeseen errors stay in the log."""
    if is_full_disk(error):
        return {"code": "storage_full", "message": "no space is left for the job's files", "retry": False}
    machine = _machine_error(error)
    if machine is not None:
        return {"code": machine.code, "message": machine.message, "retry": True}
    if isinstance(error, EngineError | HeaderError):
        return {"code": error.code, "message": str(error), "retry": False}
    return {
        "code": "engine_failed",
        "message": f"the engine failed with {type(error).__name__}; the worker's log has the details",
        "retry": False,
    }


def outline(error: BaseException) -> str:
    """Types and places of an error and its causes, for the log: without messages, which may quote prompts."""
    return "\n".join(line for part in causes(error) for line in _outline_of(part))


def _outline_of(error: BaseException) -> Iterator[str]:
    yield type(error).__name__
    for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES:]:
        yield f"  {frame.filename}:{frame.lineno} {frame.name}"


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk; safetensors reports one by its text only."""
    return any(
        (isinstance(part, OSError) and part.errno in FULL) or "No space left on device" in str(part)
        for part in causes(error)
    )


def _machine_error(error: BaseException) -> MachineError | None:
    """The machine's failure that an error is, or that the engine took for a fault of the model."""
    for part in causes(error):
        if isinstance(part, MachineError):
            return part
        if isinstance(part, HubUnavailableError):
            return MachineError("hub_unavailable", str(part))
        if isinstance(part, ProcessLostError):
            return MachineError(part.code, str(part))
        if is_out_of_memory(part):
            return MachineError("out_of_memory", "the engine ran out of memory")
        if system_says(part, {errno.EIO, errno.ESTALE}, _DISK_SIGNS):
            return MachineError("io_error", "the worker's disk failed while it was read or written")
    return None
