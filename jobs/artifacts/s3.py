"""Artifacts in an S3-compatible store. Files are staged on the local disk and uploaded when sealed.

Objects have no rename: `{prefix}/{job}/{attempt}/{name}` exists from sealing on, and is visible only
through the rows of the completing transaction. What a stale attempt uploaded is found as an orphan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from jobs.artifacts.base import CHUNK_BYTES, Sealed, StoredFolder, check_name
from jobs.artifacts.local import LocalStore
from jobs.artifacts.sealing import staged_files
from jobs.errors import ArtifactMissingError, StorageError
from jobs.ids import is_id

PART_BYTES = 16 * 1024 * 1024
READ_BYTES = 4 * 1024 * 1024
_KEY = re.compile(r"([0-9a-f-]{36})/([1-9]\d{0,9})/[^/]+")


class S3RangeStore:
    """A bucket (with a prefix), and a local folder for staging."""

    def __init__(self, store: S3Store, stage_root: Path) -> None:
        self._store = store
        self._stages = LocalStore(stage_root)

    def stage(self, job_id: str, attempt: int) -> Path:
        """A local folder; its files are uploaded by `seal`."""
        return self._stages.stage(job_id, attempt)

    def seal(self, job_id: str, attempt: int, *, finished_at: int) -> Sealed:
        """Hash the staged files and upload them (multipart above 16 MiB)."""
        sealed = self._stages.seal(job_id, attempt, finished_at=finished_at)
        stage = self._stages.stage(job_id, attempt)
        for path, artifact in zip(staged_files(stage), sealed.artifacts, strict=True):
            self._upload(path, f"{artifact.storage}/{artifact.name}", artifact.size)
        return sealed

    def publish(self, job_id: str, attempt: int) -> None:
        """The rows that commit with this transaction make the objects visible; the stage folder goes."""
        self._stages.discard(job_id, attempt)

    def discard(self, job_id: str, attempt: int) -> None:
        """Remove the local stage folder."""
        self._stages.discard(job_id, attempt)

    def open_range(self, storage: str, name: str, start: int, length: int) -> Iterator[bytes]:
        """Stream a part of an object, by ranged requests of a few MiB."""
        key = f"{_checked(storage)}/{check_name(name)}"
        try:
            size = obstore.head(self._store, key)["size"]
        except FileNotFoundError as error:
            raise ArtifactMissingError("the artifact's object is gone") from error
        except BaseError as error:
            raise StorageError("the artifact store does not answer") from error
        if size < start + length:
            raise ArtifactMissingError("the artifact's object is shorter than recorded")
        return self._stream(key, start, length)

    def delete(self, storage: str) -> None:
        """Remove all objects of a folder, and its stage folder here."""
        prefix = _checked(storage)
        self._stages.delete(storage)
        try:
            keys = [item["path"] for batch in obstore.list(self._store, f"{prefix}/") for item in batch]
            if keys:
                obstore.delete(self._store, keys)
        except BaseError as error:
            raise StorageError("the artifact store does not answer") from error

    def folders(self) -> Iterator[StoredFolder]:
        """Every folder in the bucket, then the stage folders on this machine."""
        newest: dict[tuple[str, int], float] = {}
        for batch in obstore.list(self._store):
            for item in batch:
                match = _KEY.fullmatch(item["path"])
                if match is not None and is_id(match[1]):
                    key = (match[1], int(match[2]))
                    newest[key] = max(newest.get(key, 0.0), item["last_modified"].timestamp())
        for (job_id, attempt), modified in sorted(newest.items()):
            yield StoredFolder(job_id, attempt, modified)
        yield from self._stages.folders()

    def free_bytes(self) -> int:
        """Free space for staging."""
        return self._stages.free_bytes()

    def check(self, token: str) -> None:
        """Write, read and remove a small object."""
        key = f"check-{check_name(token)}"
        try:
            obstore.put(self._store, key, token.encode())
            same = bytes(obstore.get(self._store, key).bytes()) == token.encode()
            obstore.delete(self._store, key)
        except (BaseError, OSError) as error:
            raise StorageError("the artifact store cannot be written or read") from error
        if not same:
            raise StorageError("the artifact store does not give back what was written")

    def _upload(self, path: Path, key: str, size: int) -> None:
        multipart = size > PART_BYTES
        try:
            obstore.put(self._store, key, path, use_multipart=multipart, chunk_size=PART_BYTES)
        except BaseError as error:
            raise StorageError("the artifact store did not take a file") from error

    def _stream(self, key: str, start: int, length: int) -> Iterator[bytes]:
        end = start + length
        for first in range(start, end, READ_BYTES):
            wanted = min(READ_BYTES, end - first)
            try:
                data: Any = obstore.get_range(self._store, key, start=first, length=wanted)
            except (BaseError, OSError) as error:
                raise StorageError("the artifact store stopped answering") from error
            view = memoryview(data)
            if len(view) != wanted:
                raise ArtifactMissingError("the artifact's object became shorter while it was read")
            for offset in range(0, wanted, CHUNK_BYTES):
                yield bytes(view[offset : offset + CHUNK_BYTES])


def _checked(storage: str) -> str:
    job_id, _, attempt = storage.partition("/")
    if not is_id(job_id) or not attempt.isdecimal():
        raise StorageError("not the name of a storage folder")
    return storage
