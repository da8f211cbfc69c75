"""Files that nothing refers to: left by attempts that were killed or replaced, or by a deletion cut short."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
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


def remove_orphans(books: Books, store: ArtifactStore, *, grace_seconds: float) -> int:
    """Delete every folder that is not live and older than the grace; returns how many.

    The age protects nothing that matters (a running attempt is live), but a clock may be off and an
    answer of the database may be a moment old.
    """
    removed = 0
    folders = iter(store.folders())
    while batch := list(islice(folders, _BATCH)):
        for folder in _dead(books, batch, grace_seconds):
            store.delete(storage_of(folder.job_id, folder.attempt))
            removed += 1
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
