"""What is no longer kept of jobs that ended: their progress in every detail, and at last all of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select

from jobs import tables as t
from jobs.repository.base import Verbs, is_in, later
from jobs.repository.purging import unreferenced
from jobs.states import TERMINAL

_j, _e = t.jobs.c, t.events.c


@dataclass(frozen=True)
class Forgotten:
    """How many jobs went, and the storage folders that nothing refers to any more, for deletion."""

    jobs: int
    folders: Sequence[str]


class RecordVerbs(Verbs):
    """Retention of records."""

    def forget_ended_jobs(self, *, limit: int = 50) -> Forgotten:
        """Delete jobs that ended `job_retention_seconds` ago, with all that belongs to them; a few at a time.

        Safe to run several times at once (SKIP LOCKED on Postgres). A job of which a webhook has yet to be
        told stays until it was. A process that dies before it deletes the folders leaves orphans.
        """
        keep = self.settings.job_retention_seconds
        if keep is None:
            return Forgotten(0, [])
        telling = t.webhook_deliveries.c
        untold = select(telling.id).where(telling.job_id == _j.id, telling.state == "pending").exists()
        due = select(_j.id).where(_j.finished_at <= later(-keep), is_in(*TERMINAL), ~untold)
        due = due.order_by(_j.finished_at).limit(limit)
        with self._read() as connection:  # a plain read: nothing to do takes no write lock
            if connection.execute(due.limit(1)).first() is None:
                return Forgotten(0, [])
        with self._write() as connection:
            locked = due.with_for_update(skip_locked=self._skip_locked, of=t.jobs)
            ids = list(connection.execute(locked).scalars())
            mine = t.artifacts.c.job_id.in_(ids)
            storage = select(t.artifacts.c.storage).distinct().where(mine)
            folders = list(connection.execute(storage).scalars())
            gone = connection.execute(delete(t.jobs).where(_j.id.in_(ids), is_in(*TERMINAL))).rowcount
            return Forgotten(gone, unreferenced(connection, folders))

    def thin_progress(self, position: str | None, *, limit: int = 50) -> str | None:
        """Delete progress events of jobs that ended `progress_retention_seconds` ago.

        Of each stage of each attempt the first and the last stay. `position` is where an earlier call came
        to; returns where this one did, or None if there was nothing left to do.
        """
        old = _j.finished_at <= later(-self.settings.progress_retention_seconds)
        query = select(_j.id, _j.finished_at).where(old, *_behind(position))
        with self._read() as connection:
            ended = connection.execute(query.order_by(_j.finished_at, _j.id).limit(limit)).all()
            surplus = _surplus(connection, [row.id for row in ended])
        if not ended:
            return None
        if surplus:
            with self._write() as connection:
                for job_id, numbers in surplus.items():
                    connection.execute(delete(t.events).where(_e.job_id == job_id, _e.seq.in_(numbers)))
        return f"{ended[-1].finished_at} {ended[-1].id}"


def _behind(position: str | None) -> tuple[ColumnElement[bool], ...]:
    if position is None:
        return ()
    time, job_id = position.split()
    return (or_(_j.finished_at > int(time), and_(_j.finished_at == int(time), _j.id > job_id)),)


def _surplus(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[int]]:
    """Job → the numbers of those of its progress events that tell no more than their neighbours do."""
    query = select(_e.job_id, _e.seq, _e.attempt, _e.data).where(
        _e.job_id.in_(job_ids), _e.type == "progress"
    )
    stages: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for row in connection.execute(query.order_by(_e.job_id, _e.seq)):
        stages[row.job_id, row.attempt, _stage(row)].append(row.seq)
    surplus: dict[str, list[int]] = defaultdict(list)
    for (job_id, _, _), numbers in stages.items():
        if len(numbers) > 2:
            surplus[job_id] += numbers[1:-1]
    return surplus


def _stage(row: Any) -> str:
    return str(json.loads(row.data).get("stage"))
