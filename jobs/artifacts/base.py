"""The store's protocol.

An attempt writes into its *stage* folder. `seal` hashes the files and makes them durable. `publish` runs
inside the transaction that completes the job. Until then the files belong to nobody: whatever is found
without a row, and without an attempt that holds its job, is an orphan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.errors import ArtifactNameError
from jobs.rows import Artifact, JsonObject

CHUNK_BYTES = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MEDIA_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".jinja": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
}


@dataclass(frozen=True)
class Sealed:
    """An attempt's files, hashed and durable: what mark_succeeded publishes."""

    artifacts: list[Artifact]
    archive: Artifact


@dataclass(frozen=True)
class KeptSteps:
    """What the finished steps of a pipeline have left, for an attempt that ends otherwise than well.

    `binding` says what an attempt must be made of to go on from it; None: no attempt may. `publish` makes the
    files visible, and is called in the transaction that writes the end.
    """

    steps: list[str]
    binding: str | None
    metrics: JsonObject
    artifacts: list[Artifact]
    archive: Artifact
    publish: Callable[[], None]


@dataclass(frozen=True)
class StoredFolder:
    """A folder that the store holds; `modified` in seconds since the epoch by the store's clock."""

    job_id: str
    attempt: int
    modified: float


#: Called often during long work; it raises to end that work.
Interrupt = Callable[[], None]


def never() -> None:
    """An `Interrupt` that lets the work go on to its end."""


class ArtifactStore(Protocol):
    """What a store can do. `storage` is "{job}/{attempt}", as in the artifacts' rows."""

    def stage(self, job_id: str, attempt: int) -> Path:
        """Make (or find) the local folder into which the attempt writes its artifacts, flat."""
        ...

    def seal(
        self,
        job_id: str,
        attempt: int,
        *,
        finished_at: int,
        interrupt: Interrupt = never,
        steps: Collection[str] = (),
    ) -> Sealed:
        """Hash every staged file and the archive, and make them durable (fsync; for S3: upload).

        `finished_at` (milliseconds, `Repository.now()`) is the modification time within the archive; give
        the same to mark_succeeded. `steps` are a pipeline's: each gets a folder in the archive. What
        `interrupt`, called every few MiB, raises leaves the stage as it was.
        Raises StorageFullError, ArtifactNameError, StorageError.
        """
        ...

    def publish(self, job_id: str, attempt: int) -> None:
        """Put the sealed files in their final place: inside the completing transaction. Repeats are safe."""
        ...

    def discard(self, job_id: str, attempt: int) -> None:
        """Remove the stage folder, whatever is in it. Never touches what was published. Repeats are safe."""
        ...

    def open_range(self, storage: str, name: str, start: int, length: int) -> Iterator[bytes]:
        """Stream `length` bytes from `start`; ArtifactMissingError at once if they are not there."""
        ...

    def delete(self, storage: str) -> None:
        """Remove a folder, published or staged. Repeats are safe."""
        ...

    def delete_many(self, storages: Sequence[str]) -> None:
        """Remove many folders, in as few requests as the store allows. Repeats are safe."""
        ...

    def folders(self, after: str | None = None) -> Iterator[StoredFolder]:
        """Every folder in the store, published or not, by name of the job: for the search for orphans.

        `after` leaves out those up to this job, to go on with a search that was cut off.
        """
        ...

    def staged(self) -> Iterator[StoredFolder]:
        """Those folders that this machine alone can see."""
        ...

    def free_bytes(self) -> int:
        """How much may still be staged here."""
        ...

    def check(self, token: str) -> None:
        """See whether the store takes and gives objects; raises StorageError if not.

        A folder is only looked at; in a bucket a small object named after `token` comes and goes.
        """
        ...


def check_name(name: str) -> str:
    """The name of an artifact, if it is an acceptable one; ArtifactNameError otherwise."""
    if _NAME.fullmatch(name) is None:
        raise ArtifactNameError("an artifact's name may hold only letters, digits and . _ -")
    return name


def media_type(name: str) -> str:
    """The media type of an artifact, by its ending."""
    return _MEDIA_TYPES.get(Path(name).suffix.lower(), "application/octet-stream")
