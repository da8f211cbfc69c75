"""The background's verbs: what was lost is found again, what waits is published, what is late expires."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, and_, case, delete, or_, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.repository.attempts import AttemptVerbs
from jobs.repository.base import JOB_COLUMNS, is_in, later, put_into_outbox, too_late
from jobs.repository.ending import finish
from jobs.rows import Job, OutboxEntry, job_from_row
from jobs.states import HELD, State

OUTBOX_LEASE_SECONDS = 10
MAX_REPUBLISH_FACTOR = 16
DECLINE_SECONDS = 1
LEASE_LOST = ("lease_expired", "the worker gave no sign of life within the lease")


class SweepingVerbs(AttemptVerbs):
    """Safe to run in several processes at once: each row is decided by its own conditional UPDATE."""

    def sweep_expired(self, *, limit: int = 100) -> list[Job]:
        """One sweep; returns the jobs it changed.

        Leases that ran out: running → queued (or failed, `attempts_exhausted`), cancelling → cancelled.
        Queue deadlines: queued → expired. Jobs queued since `republish_seconds` without being claimed
        (a broker that lost its messages): into the outbox again, ever more rarely.
        """
        with self._write() as connection:
            late = self._due(connection, is_in(*HELD), t.jobs.c.lease_expires_at <= now_ms(), limit=limit)
            for job_id, attempt in late:
                self._lose(connection, job_id, attempt, *LEASE_LOST)
            overdue = self._due(connection, is_in(State.QUEUED), too_late(), limit=limit)
            for job_id, _ in overdue:
                self._expire(connection, job_id)
            forgotten = self._due(connection, *self._forgotten(), limit=limit)
            for job_id, _ in forgotten:
                put_into_outbox(connection, job_id)
            return _jobs(connection, [job_id for job_id, _ in (*late, *overdue)])

    def take_outbox(self, *, limit: int = 100) -> list[OutboxEntry]:
        """Messages that are due, most urgent first, reserved for this caller for ten seconds.

        Publish them, then mark_published. If the caller dies in between they come up again: a message
        may go out twice, which the claim survives.
        """
        free = (
            select(t.outbox.c.id)
            .join(t.jobs, t.jobs.c.id == t.outbox.c.job_id)
            .where(t.outbox.c.taken_until <= now_ms())
            .order_by(t.jobs.c.priority.desc(), t.outbox.c.id)
            .limit(limit)
        )
        if self._skip_locked:
            free = free.with_for_update(of=t.outbox, skip_locked=True)
        with self._write() as connection:
            ids = list(connection.execute(free).scalars())
            reserve = update(t.outbox).where(t.outbox.c.id.in_(ids))
            connection.execute(reserve.values(taken_until=later(OUTBOX_LEASE_SECONDS)))
            return _entries(connection, ids)

    def mark_published(self, entries: Sequence[OutboxEntry]) -> None:
        """These messages went out: their outbox rows go. Repeats are safe.

        Jobs are locked before their messages, as a claim does it, so that the two can't wait for each other.
        """
        with self._write() as connection:
            connection.execute(
                update(t.jobs)
                .where(t.jobs.c.id.in_([entry.job_id for entry in entries]), is_in(State.QUEUED))
                .values(published_at=now_ms(), publish_count=t.jobs.c.publish_count + 1)
            )
            connection.execute(delete(t.outbox).where(t.outbox.c.id.in_([entry.id for entry in entries])))

    def decline(self, job_id: str) -> None:
        """A worker that should not run this job hands its message back: it is published again in a moment.

        Repeats are safe, and so is a job that is not queued any more: nothing happens.
        """
        c = t.jobs.c
        waiting = select(t.outbox.c.id).where(t.outbox.c.job_id == c.id).exists()
        mine = select(c.id).where(c.id == job_id, is_in(State.QUEUED), ~waiting)
        with self._write() as connection:
            if connection.execute(mine.with_for_update()).first() is not None:
                put_into_outbox(connection, job_id, delay_seconds=DECLINE_SECONDS)

    def outbox_waiting(self) -> bool:
        """Whether any message is due, without taking it or the write lock."""
        query = select(t.outbox.c.id).where(t.outbox.c.taken_until <= now_ms()).limit(1)
        with self._read() as connection:
            return connection.execute(query).first() is not None

    def _due(self, connection: Connection, *where: ColumnElement[bool], limit: int) -> list[tuple[str, int]]:
        query = select(t.jobs.c.id, t.jobs.c.attempt).where(*where).limit(limit)
        locked = query.with_for_update(skip_locked=True) if self._skip_locked else query
        return [(row.id, row.attempt) for row in connection.execute(locked)]

    def _expire(self, connection: Connection, job_id: str) -> None:
        finish(
            connection,
            (t.jobs.c.id == job_id, is_in(State.QUEUED)),
            State.EXPIRED,
            retention_seconds=self.settings.retention_seconds,
            error=("queue_timeout", "the job was not started within its queue time limit"),
        )

    def _forgotten(self) -> tuple[ColumnElement[bool], ...]:
        c = t.jobs.c
        wait = round(self.settings.republish_seconds * 1000)
        doublings = [(c.publish_count <= n, wait * 2 ** max(n - 1, 0)) for n in range(5)]
        patience = case(*doublings, else_=wait * MAX_REPUBLISH_FACTOR)
        waiting = select(t.outbox.c.id).where(t.outbox.c.job_id == c.id).exists()
        since = or_(
            and_(c.published_at.is_not(None), c.published_at <= now_ms() - patience),
            and_(c.published_at.is_(None), c.queued_at <= now_ms() - wait),
        )
        return (is_in(State.QUEUED), since, ~waiting)


def _entries(connection: Connection, ids: Sequence[int]) -> list[OutboxEntry]:
    c = t.jobs.c
    query = (
        select(t.outbox.c.id, c.id.label("job_id"), c.queue, c.priority, c.traceparent)
        .join(t.jobs, c.id == t.outbox.c.job_id)
        .where(t.outbox.c.id.in_(ids))
        .order_by(c.priority.desc(), t.outbox.c.id)
    )
    return [OutboxEntry(**row) for row in connection.execute(query).mappings()]


def _jobs(connection: Connection, ids: Sequence[str]) -> list[Job]:
    rows = connection.execute(select(*JOB_COLUMNS).where(t.jobs.c.id.in_(ids)))
    return [job_from_row(row) for row in rows]
