"""Hashing a stage folder: each file and the archive, in one pass over the bytes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.artifacts.archive import ArchivePlan, paths_of_steps
from jobs.artifacts.base import CHUNK_BYTES, Interrupt, Sealed, check_name, media_type, never
from jobs.errors import ArtifactNameError, StorageFullError
from jobs.rows import Artifact, storage_of

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def full_disk_is_named() -> Iterator[None]:
    """Turn the operating system's "no space left" into StorageFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError("no space is left for the job's files") from error
        raise


def staged_files(stage: Path) -> list[Path]:
    """The regular files of a stage folder, sorted by name; ArtifactNameError for anything else in it."""
    files = sorted(stage.iterdir(), key=lambda path: path.name)
    for path in files:
        check_name(path.name)
        if path.is_symlink() or not path.is_file():
            raise ArtifactNameError(f"the artifact {path.name} is not a regular file")
    return files


def seal_folder(
    stage: Path,
    job_id: str,
    attempt: int,
    *,
    finished_at: int,
    interrupt: Interrupt = never,
    steps: Collection[str] = (),
) -> Sealed:
    """Hash the staged files and their archive, and fsync files and folder."""
    files = staged_files(stage)
    sizes = [(path.name, path.stat().st_size) for path in files]
    paths = paths_of_steps((name for name, _ in sizes), steps)
    laid = [(paths.get(name, name), name, size) for name, size in sizes]
    plan = ArchivePlan(job_id, finished_at // 1000, laid)
    digests: dict[str, str] = {}

    def read_whole(name: str, _start: int, _length: int) -> Iterator[bytes]:
        digest = hashlib.sha256()
        yield from _hashed(stage / name, digest)
        digests[name] = digest.hexdigest()

    archive = hashlib.sha256()
    with full_disk_is_named():
        for chunk in plan.read(0, plan.size, read_whole):
            interrupt()
            archive.update(chunk)
        fsync_folder(stage)
    for name, size in sizes:
        if size == 0:  # the plan skips empty segments
            digests[name] = hashlib.sha256().hexdigest()
    storage = storage_of(job_id, attempt)
    artifacts = [
        Artifact(name, media_type(name), size, digests[name], storage, finished_at, paths.get(name))
        for name, size in sizes
    ]
    whole = Artifact("*", "application/x-tar", plan.size, archive.hexdigest(), storage, finished_at)
    return Sealed(artifacts=artifacts, archive=whole)


def _hashed(path: Path, digest: hashlib._Hash) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            yield chunk
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
