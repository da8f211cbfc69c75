"""The state of a streamed calibrated job: kept under the job's id, for an attempt that follows here.

An engine process holds the state while it runs, by a lock that goes with the process: a replaced attempt that
still runs and the one that replaced it never write to the same files.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

_NOTE = "binding"


def lock_of(folder: Path) -> Path:
    """The file whose lock says that an engine process holds the state."""
    return folder.with_name(f"{folder.name}.lock")


def hold(folder: Path, binding: str, stack: ExitStack) -> Path:
    """The folder of a job's state, for as long as the stack is open; what is bound to other work is removed.

    Where another process holds it, a folder that goes with the stack stands in for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(lock_of(folder).open("a"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        own = tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent)
        return Path(stack.enter_context(own))
    note = folder / _NOTE
    with suppress(OSError):
        if note.read_text(encoding="utf-8") == binding:
            return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    note.write_text(binding, encoding="utf-8")
    return folder


def remove(folder: Path) -> None:
    """Remove a job's state, and what stood in for it; safe where there is none."""
    for path in (folder, *folder.parent.glob(f"{folder.name}.*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
