"""One service per data folder: an advisory lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class AlreadyRunningError(RuntimeError):
    """Another `optipfair-service serve` holds the data folder."""


class DataFolderLock:
    """Holds `<data_dir>/lock`; the file names the holder's process for the next one's error message."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._descriptor: int | None = None

    def __enter__(self) -> DataFolderLock:
        """Take the lock or raise `AlreadyRunningError`; never waits."""
        # O_CLOEXEC is Python's default, so no child keeps the folder locked after the service is gone.
        descriptor = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunningError(
                f"another optipfair-service (process {holder}) is using the data folder {self._data_dir}: "
                "stop it first, or give this one a folder of its own with --data-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock; the file stays, because removing it would race with the next holder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
