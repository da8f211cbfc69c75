"""Artifacts in an S3-compatible store. Files are staged on the local disk and uploaded when sealed.

Objects have no rename: `{prefix}/{job}/{attempt}/{name}` exists from sealing on, and is visible only
through the rows of the completing transaction. What a stale attempt uploaded is found as an orphan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from jobs.artifacts.base import CHUNK_BYTES, Interrupt, Sealed, StoredFolder, check_name, never
from jobs.artifacts.local import LocalStore
from jobs.artifacts.sealing import staged_files
from jobs.errors import ArtifactMissingError, StorageError
from jobs.ids import is_id

PART_BYTES = 8 * 1024 * 1024
#: Parts under way at once: they share the line, and each has `artifacts_s3_timeout_seconds`.
CONCURRENT_PARTS = 4
_LIST_BATCH = 1000
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

    def seal(
        self,
        job_id: str,
        attempt: int,
        *,
        finished_at: int,
        interrupt: Interrupt = never,
        steps: Collection[str] = (),
    ) -> Sealed:
        """Hash the staged files and upload them (multipart above 8 MiB)."""
        sealed = self._stages.seal(job_id, attempt, finished_at=finished_at, interrupt=interrupt, steps=steps)
        stage = self._stages.stage(job_id, attempt)
        for path, artifact in zip(staged_files(stage), sealed.artifacts, strict=True):
            self._upload(path, f"{artifact.storage}/{artifact.name}", artifact.size, interrupt)
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
        self.delete_many([storage])

    def delete_many(self, storages: Sequence[str]) -> None:
        """Remove all objects of many folders, a thousand to a request, and their stage folders here."""
        prefixes = [_checked(storage) for storage in storages]
        self._stages.delete_many(storages)
        with _named("the artifact store did not remove a folder"):
            keys = [
                item["path"]
                for prefix in prefixes
                for batch in obstore.list(self._store, f"{prefix}/")
                for item in batch
            ]
            if keys:
                obstore.delete(self._store, keys)

    def folders(self, after: str | None = None) -> Iterator[StoredFolder]:
        """Every folder in the bucket, then the stage folders on this machine."""
        yield from self._uploaded(after)
        yield from self.staged()

    def staged(self) -> Iterator[StoredFolder]:
        """The stage folders on this machine."""
        return self._stages.folders()

    def _uploaded(self, after: str | None) -> Iterator[StoredFolder]:
        """A bucket lists by name, so what it holds of one job comes together."""
        newest: dict[tuple[str, int], float] = {}
        offset = None if after is None else f"{after}0"  # behind "/", so behind all that the job has
        with _named("the artifact store does not list its folders"):
            for batch in obstore.list(self._store, offset=offset, chunk_size=_LIST_BATCH):
                for item in batch:
                    match = _KEY.fullmatch(item["path"])
                    if match is None or not is_id(match[1]):
                        continue
                    key = (match[1], int(match[2]))
                    if newest and key[0] != next(iter(newest))[0]:
                        yield from _folders(newest)
                        newest = {}
                    newest[key] = max(newest.get(key, 0.0), item["last_modified"].timestamp())
        yield from _folders(newest)

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

    def _upload(self, path: Path, key: str, size: int, interrupt: Interrupt) -> None:
        # An error in its source makes obstore abort a multipart upload, whose parts would stay for ever.
        with _named("the artifact store did not take a file"):
            multipart = size > PART_BYTES
            obstore.put(
                self._store,
                key,
                _parts(path, interrupt),
                use_multipart=multipart,
                chunk_size=PART_BYTES,
                max_concurrency=CONCURRENT_PARTS,
            )

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


def _parts(path: Path, interrupt: Interrupt) -> Iterator[bytes]:
    interrupt()
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            yield part
            interrupt()


def _folders(newest: Mapping[tuple[str, int], float]) -> Iterator[StoredFolder]:
    return (StoredFolder(*key, modified) for key, modified in sorted(newest.items()))


@contextmanager
def _named(message: str) -> Iterator[None]:
    """Turn what obstore raises into StorageError."""
    try:
        yield
    except BaseError as error:
        raise StorageError(message) from error


def _checked(storage: str) -> str:
    job_id, _, attempt = storage.partition("/")
    if not is_id(job_id) or not attempt.isdecimal():
        raise StorageError("not the name of a storage folder")
    return storage
