"""Files that nothing refers to: left by attempts that were killed or replaced, or by a deletion cut short."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

from jobs.artifacts.base import ArtifactStore, StoredFolder
from jobs.rows import storage_of

_BATCH = 200


class Books(Protocol):
    """What the repository knows of folders."""

    def live_storage(self, folders: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those that are published, or whose attempt holds its job."""
        ...


def _always(_place: str) -> bool:
    return True


def remove_orphans(
    books: Books,
    store: ArtifactStore,
    *,
    grace_seconds: float,
    after: str | None = None,
    go_on: Callable[[str], bool] = _always,
) -> int:
    """Delete every folder behind `after` that is not live and older than the grace; returns how many.

    The age protects nothing that matters (a running attempt is live), but a clock may be off and an
    answer of the database may be a moment old. `go_on` is told every few hundred folders how far it has come
    (which a later call may take as `after`), and says whether to go on.
    """
    return _remove(books, store, store.folders(after), grace_seconds, go_on)


def remove_staged_orphans(books: Books, store: ArtifactStore, *, grace_seconds: float) -> int:
    """The same for what lies on this machine alone: of a bucket, the folders that were being uploaded."""
    return _remove(books, store, store.staged(), grace_seconds, _always)


def _remove(
    books: Books,
    store: ArtifactStore,
    folders: Iterator[StoredFolder],
    grace_seconds: float,
    go_on: Callable[[str], bool],
) -> int:
    removed = 0
    while batch := list(islice(folders, _BATCH)):
        dead = [storage_of(folder.job_id, folder.attempt) for folder in _dead(books, batch, grace_seconds)]
        store.delete_many(dead)
        removed += len(dead)
        if not go_on(batch[-1].job_id):
            break
    return removed


def remove_if_dead(books: Books, store: ArtifactStore, job_id: str, attempt: int) -> bool:
    """Delete one attempt's files at once, unless they are published or it still holds its job."""
    if books.live_storage([(job_id, attempt)]):
        return False
    store.delete(storage_of(job_id, attempt))
    return True


def _dead(books: Books, batch: list[StoredFolder], grace_seconds: float) -> Iterator[StoredFolder]:
    limit = time.time() - grace_seconds
    old = [folder for folder in batch if folder.modified < limit]
    live = books.live_storage({(folder.job_id, folder.attempt) for folder in old})
    return (folder for folder in old if (folder.job_id, folder.attempt) not in live)
