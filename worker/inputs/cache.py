"""Folders fetched from elsewhere (hub snapshots, earlier jobs), kept by revision, within a size limit.

Safe under concurrent workers on one machine: an entry is filled under an exclusive lock in a temporary folder
and appears by one rename; users hold a shared lock, and eviction takes only what nobody holds. The kernel
drops the locks of a process that dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: The numbers of "no space left on device" and of a quota that is used up.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

#: Called with an empty folder to fill; whatever it raises leaves the cache unchanged.
Fill = Callable[[Path], None]


class FolderCache:
    """Folders by key (a plain name) under `root`, at most about `limit_bytes` in all."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root
        self._limit = limit_bytes

    @contextmanager
    def folder(self, key: str, fill: Fill) -> Iterator[Path]:
        """The folder of `key`, filled if absent; it stays while the context lasts."""
        self._root.mkdir(parents=True, exist_ok=True)
        with self._locked(key, fcntl.LOCK_SH) as present:
            if not present:
                self._fill(key, fill)
            os.utime(self._path(key))
            yield self._path(key)
        self.evict()

    def _path(self, key: str) -> Path:
        return self._root / key

    @contextmanager
    def _locked(self, key: str, mode: int) -> Iterator[bool]:
        """Hold the key's lock; yields whether the entry exists. Lock files stay: removing them would race."""
        with (self._root / f".{key}.lock").open("a") as handle:
            fcntl.flock(handle, mode)
            yield self._path(key).is_dir()

    def _fill(self, key: str, fill: Fill) -> None:
        # A second lock file, so that the caller may keep its shared lock on the entry.
        with (self._root / f".{key}.fill").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if self._path(key).is_dir():
                return
            temporary = self._root / f".{key}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                self._fill_or_make_room(fill, temporary)
                temporary.rename(self._path(key))
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def _fill_or_make_room(self, fill: Fill, temporary: Path) -> None:
        try:
            fill(temporary)
        except OSError as error:
            # How much is missing nobody knows: all that is unused goes, and the second try decides.
            if error.errno not in FULL or self.make_room(lambda: False) == 0:
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            fill(temporary)

    def evict(self) -> None:
        """Remove the least recently used entries that nobody holds, until the limit is kept."""
        entries = self._oldest_first()
        total = sum(size for size, _path in entries)
        for size, path in entries:
            if total <= self._limit:
                return
            if self._remove_unused(path):
                total -= size

    def make_room(self, enough: Callable[[], bool]) -> int:
        """Remove the least recently used entries that nobody holds, until it is enough; returns how many."""
        removed = 0
        for _size, path in self._oldest_first():
            if enough():
                break
            removed += self._remove_unused(path)
        return removed

    def _oldest_first(self) -> list[tuple[int, Path]]:
        entries = [entry for entry in map(_measured, self._entries()) if entry is not None]
        return [(size, path) for _used, size, path in sorted(entries)]

    def _entries(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return [path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _remove_unused(self, path: Path) -> bool:
        with (self._root / f".{path.name}.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            # Out of sight first: what a killed worker leaves half removed must not look like an entry.
            doomed = self._root / f".{path.name}.{os.getpid()}.gone.tmp"
            with suppress(OSError):  # another worker was faster
                path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            return True

    def remove_stale(self, older_than_seconds: float = 24 * 3600) -> None:
        """Remove what a worker that was killed while it filled or evicted left behind."""
        for path in self._root.glob(".*.tmp") if self._root.is_dir() else []:
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    shutil.rmtree(path, ignore_errors=True)


def _measured(path: Path) -> tuple[float, int, Path] | None:
    """When an entry was last used and how large it is; None for one that another worker is removing."""
    try:
        return path.stat().st_mtime, folder_bytes(path), path
    except FileNotFoundError:
        return None


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
