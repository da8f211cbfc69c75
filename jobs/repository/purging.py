"""Which stored files nobody needs: past their retention, or never published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, delete, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.repository.base import Verbs
from jobs.rows import storage_of
from jobs.states import HELD


class PurgingVerbs(Verbs):
    """Retention and orphans."""

    def take_expired_artifacts(self, *, limit: int = 100) -> list[str]:
        """Forget the artifacts of jobs past `artifacts_expire_at`; returns folders to delete from the store.

        The jobs stay. Safe to run several times at once (SKIP LOCKED on Postgres). A process that dies
        before it deletes the folders leaves orphans, which are found later.
        """
        due = (
            select(t.jobs.c.id)
            .where(t.jobs.c.artifacts_expire_at <= now_ms())
            .limit(limit)
            .with_for_update(skip_locked=self._skip_locked)
        )
        with self._write() as connection:
            ids = list(connection.execute(due).scalars())
            rows = t.artifacts.c.job_id.in_(ids)
            folders = list(connection.execute(select(t.artifacts.c.storage).distinct().where(rows)).scalars())
            connection.execute(delete(t.artifacts).where(rows))
            connection.execute(
                update(t.jobs)
                .where(t.jobs.c.id.in_(ids))
                .values(artifacts_expire_at=None, reuse_key=None, kept=None, version=t.jobs.c.version + 1)
            )
            return unreferenced(connection, folders)

    def live_storage(self, folders: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which (job, attempt) folders are published, hold a part of an upload, or are a running attempt's.

        The others are orphans, if they are old enough (`orphan_grace_seconds`): an attempt that has just
        been claimed may be about to write.
        """
        wanted = set(folders)
        if not wanted:
            return set()
        ids = sorted({job_id for job_id, _ in wanted})
        held = select(t.jobs.c.id, t.jobs.c.attempt).where(
            t.jobs.c.id.in_(ids), t.jobs.c.state.in_([state.value for state in HELD])
        )
        names = [storage_of(*folder) for folder in sorted(wanted)]
        published = select(t.artifacts.c.storage).distinct().where(t.artifacts.c.storage.in_(names))
        parts = select(t.blob_parts.c.blob_id, t.blob_parts.c.number).where(t.blob_parts.c.blob_id.in_(ids))
        with self._read() as connection:
            # Published last: an attempt that completes in between is then found by one of the two.
            alive = {(row.id, row.attempt) for row in connection.execute(held)}
            kept = set(connection.execute(published).scalars())
            alive |= {(row.blob_id, row.number) for row in connection.execute(parts)}
        return {folder for folder in wanted if folder in alive or storage_of(*folder) in kept}


def unreferenced(connection: Connection, folders: Sequence[str]) -> list[str]:
    """Those of the storage folders that no artifact of any job refers to."""
    used = select(t.artifacts.c.storage).distinct().where(t.artifacts.c.storage.in_(folders))
    return sorted(set(folders) - set(connection.execute(used).scalars()))
