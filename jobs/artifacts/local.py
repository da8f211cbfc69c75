"""Artifacts on a local disk: `{root}/{job}/{attempt}.tmp` until published, then `{root}/{job}/{attempt}`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from jobs.artifacts.base import CHUNK_BYTES, Interrupt, Sealed, StoredFolder, check_name, never
from jobs.artifacts.sealing import fsync_folder, full_disk_is_named, seal_folder
from jobs.errors import ArtifactMissingError, StorageError
from jobs.ids import is_id

_ATTEMPT = re.compile(r"([1-9]\d{0,9})(\.tmp)?")
_MKDIR_TRIES = 5


class LocalStore:
    """A folder. Publishing is one rename, so a reader sees all of a result or nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, job_id: str, attempt: int) -> Path:
        """Make (or find) `{job}/{attempt}.tmp`."""
        folder = self._folder(f"{job_id}/{attempt}", staged=True)
        with full_disk_is_named():
            for left in reversed(range(_MKDIR_TRIES)):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    break
                except FileNotFoundError:  # delete() removed the empty job folder in between
                    if left == 0:
                        raise
        return folder

    def seal(
        self,
        job_id: str,
        attempt: int,
        *,
        finished_at: int,
        interrupt: Interrupt = never,
        steps: Collection[str] = (),
    ) -> Sealed:
        """Hash and fsync the staged files."""
        stage = self._folder(f"{job_id}/{attempt}", staged=True)
        return seal_folder(stage, job_id, attempt, finished_at=finished_at, interrupt=interrupt, steps=steps)

    def publish(self, job_id: str, attempt: int) -> None:
        """Rename the stage folder to its final name; done already: nothing."""
        stage = self._folder(f"{job_id}/{attempt}", staged=True)
        final = self._folder(f"{job_id}/{attempt}")
        if not stage.is_dir() and final.is_dir():
            return
        stage.rename(final)
        fsync_folder(final.parent)
        fsync_folder(self.root)

    def discard(self, job_id: str, attempt: int) -> None:
        """Remove the stage folder."""
        self._remove(self._folder(f"{job_id}/{attempt}", staged=True))

    def open_range(self, storage: str, name: str, start: int, length: int) -> Iterator[bytes]:
        """Stream a part of a published file."""
        path = self._folder(storage) / check_name(name)
        try:
            file = path.open("rb")
        except OSError as error:
            raise ArtifactMissingError("the artifact's file is gone") from error
        if os.fstat(file.fileno()).st_size < start + length:
            file.close()
            raise ArtifactMissingError("the artifact's file is shorter than recorded")
        return _stream(file, start, length)

    def delete(self, storage: str) -> None:
        """Remove a folder, published or staged, and the job's folder once it is empty."""
        self._remove(self._folder(storage))
        self._remove(self._folder(storage, staged=True))

    def delete_many(self, storages: Sequence[str]) -> None:
        """Remove many folders."""
        for storage in storages:
            self.delete(storage)

    def folders(self, after: str | None = None) -> Iterator[StoredFolder]:
        """Every `{job}/{attempt}` and `{job}/{attempt}.tmp`."""
        if not self.root.is_dir():
            return
        for job in sorted(self.root.iterdir()):
            if not is_id(job.name) or not job.is_dir() or (after is not None and job.name <= after):
                continue
            for folder in sorted(job.iterdir()):
                match = _ATTEMPT.fullmatch(folder.name)
                if match is not None:
                    yield StoredFolder(job.name, int(match[1]), _newest(folder))

    def staged(self) -> Iterator[StoredFolder]:
        """All of them: they lie on this machine."""
        return self.folders()

    def free_bytes(self) -> int:
        """Free space of the disk under the root."""
        return shutil.disk_usage(self._nearest()).free

    def check(self, token: str) -> None:
        """Look whether the folder may be written, or made; nothing is left behind, so nothing is made."""
        nearest = self._nearest()
        if not nearest.is_dir():
            raise StorageError(f"the artifact folder cannot be written: {nearest} is not a folder")
        if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
            raise StorageError(f"the artifact folder cannot be written: no permission for {nearest}")

    def _nearest(self) -> Path:
        """The root, or the folder that is there in which it will be made."""
        absolute = self.root.absolute()
        return next(path for path in (absolute, *absolute.parents) if path.exists())

    def _folder(self, storage: str, *, staged: bool = False) -> Path:
        job_id, _, attempt = storage.partition("/")
        match = _ATTEMPT.fullmatch(attempt)
        if not is_id(job_id) or match is None or match[2]:
            raise StorageError("not the name of a storage folder")
        return self.root / job_id / (attempt + (".tmp" if staged else ""))

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.parent.rmdir()
        except OSError:
            return  # another attempt's folder is in it, or it is gone already


def _stream(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = length
        while left > 0:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise ArtifactMissingError("the artifact's file became shorter while it was read")
            left -= len(chunk)
            yield chunk


def _newest(folder: Path) -> float:
    """When anything in the folder last changed: a file that is still growing keeps its folder young."""
    try:
        times = [entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(folder)]
        return max([folder.stat().st_mtime, *times])
    except OSError:
        return float("inf")  # it is changing right now
