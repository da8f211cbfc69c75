"""What all verbs share: the engine, the settings, and the one way to change a job's row."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Insert,
    and_,
    func,
    insert,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from jobs import tables as t
from jobs.access.audit import Act, Action, Actor
from jobs.database import now_ms, reader_of, writing
from jobs.errors import ArtifactQuotaError, QueueFullError, QuotaExceededError
from jobs.ids import new_id
from jobs.rows import JOB_FIELDS, Job, JsonObject, job_from_row, to_json
from jobs.settings import Settings
from jobs.states import ACTIVE, HELD, State

RETRY_AFTER_SECONDS = 30

JOB_COLUMNS = [t.jobs.c[name] for name in JOB_FIELDS]
"""A job without its results, which may be large and are read by verbs of their own."""


class Verbs:
    """The base of every group of verbs; each verb opens and closes its own transaction."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self._reader = reader_of(engine)
        self._act: Act | None = None

    def on_behalf(self, actor: Actor, request_id: str | None = None) -> Self:
        """The same repository for one caller: what its verbs write is entered in the audit, with it."""
        mine = copy.copy(self)
        mine._act = Act(actor, request_id)
        return mine

    def _audit(self, connection: Connection, action: Action, tenant: str, thing: str) -> None:
        """Enter a write in the audit, within its transaction; what no caller asked for is not entered."""
        if self._act is None:
            return
        connection.execute(
            insert(t.audit).values(
                id=new_id(),
                time=now_ms(),
                tenant=tenant,
                key_id=self._act.actor.key_id,
                subject=self._act.actor.subject,
                action=action,
                object=thing,
                request_id=self._act.request_id,
            )
        )

    def _read(self) -> AbstractContextManager[Connection]:
        return self._reader.connect()

    def _write(self) -> AbstractContextManager[Connection]:
        return writing(self.engine)

    @property
    def _skip_locked(self) -> bool:
        """Whether rows are taken with SKIP LOCKED (SQLite has one writer anyway)."""
        return self.engine.dialect.name == "postgresql"

    def _insert(self, table: Any) -> Any:
        """An INSERT that knows ON CONFLICT in the engine's dialect."""
        return (postgresql if self._skip_locked else sqlite).insert(table)

    def _check_quotas(self, connection: Connection, tenant: str, output_bytes: int = 0) -> None:
        """Within the transaction that queues a job: refuse it if it is one too many, which rolls it back.

        `output_bytes` is what it is expected to write.
        """
        self._check_artifact_bytes(connection, tenant, output_bytes)
        limit = self.settings.max_jobs_per_tenant
        if tallied(connection, *ACTIVE, tenant=tenant) > limit:
            raise QuotaExceededError(
                f"this tenant's limit of jobs queued or running is {limit}: wait for one, or cancel one",
                limit=limit,
                retry_after=RETRY_AFTER_SECONDS,
            )
        if tallied(connection, State.QUEUED) > self.settings.max_queue_depth:
            raise QueueFullError("the queue is full: try again later", retry_after=RETRY_AFTER_SECONDS)

    def _check_artifact_bytes(self, connection: Connection, tenant: str, output_bytes: int) -> None:
        limit = self.settings.max_artifact_bytes_per_tenant
        if limit is None:
            return
        kept = kept_bytes(connection, tenant).get(tenant, 0)
        if kept + output_bytes > limit:
            raise ArtifactQuotaError(
                f"this tenant's files take {kept:,} bytes, the job may write {output_bytes:,}, and the limit "
                f"is {limit:,}: delete jobs that you no longer need (DELETE /v1/jobs/{{id}})",
                limit=limit,
                retry_after=RETRY_AFTER_SECONDS,
            )


def kept_bytes(connection: Connection, tenant: str | None = None) -> dict[str, int]:
    """What each tenant's files take (or one's), in bytes; files that jobs share count once."""
    a, j = t.artifacts.c, t.jobs.c
    files = (
        select(j.tenant, a.storage, a.name, a.size)
        .join(t.jobs, j.id == a.job_id)
        .where(a.name != "*", true() if tenant is None else j.tenant == tenant)
        .distinct()
        .subquery()
    )
    query = select(files.c.tenant, func.sum(files.c.size)).group_by(files.c.tenant)
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def later(seconds: float) -> ColumnElement[int]:
    """A moment that many seconds from now, by the database's clock."""
    return now_ms() + round(seconds * 1000)


def is_in(*states: State) -> ColumnElement[bool]:
    """Whether a job is in one of the states."""
    return t.jobs.c.state.in_([state.value for state in states])


def waits() -> ColumnElement[bool]:
    """Whether a job is queued, in the words of the indexes of queued jobs alone: those match no parameter."""
    return t.jobs.c.state == literal_column("'queued'")


def fenced(job_id: str, attempt: int, *states: State) -> tuple[ColumnElement[bool], ...]:
    """The guard of everything that an attempt writes: its number, and a state in which it holds the job.

    The state too, else a stale attempt could complete a job that the sweeper has just put back.
    """
    return (t.jobs.c.id == job_id, t.jobs.c.attempt == attempt, is_in(*(states or HELD)))


def change(
    connection: Connection,
    where: tuple[ColumnElement[bool], ...],
    event_type: str,
    data: JsonObject,
    **values: Any,
) -> Job | None:
    """Change at most one job and append the event that tells of it, or do nothing and return None.

    One conditional UPDATE decides; it also hands out the event's number, so numbers have no gaps.
    """
    statement = (
        update(t.jobs)
        .where(*where)
        .values(version=t.jobs.c.version + 1, last_seq=t.jobs.c.last_seq + 1, **values)
        .returning(*JOB_COLUMNS)
    )
    row = connection.execute(statement).first()
    if row is None:
        return None
    job = job_from_row(row)
    connection.execute(event_row(job, event_type, data))
    return job


def event_row(job: Job, event_type: str, data: JsonObject) -> Insert:
    """The INSERT of a job's newest event."""
    return insert(t.events).values(
        job_id=job.id,
        seq=job.last_seq,
        time=now_ms(),
        type=event_type,
        attempt=job.attempt,
        data=to_json(data),
    )


CLEARED = {
    "worker_id": None,
    "lease_expires_at": None,
    "progress_fraction": None,
    "progress_stage": None,
    "progress_message": None,
    "eta_seconds": None,
}
"""What a job loses when no attempt holds it any more and it waits again."""


def requeued() -> dict[str, Any]:
    """The columns of a job that goes back into the queue; a queue time limit begins anew."""
    return {
        **CLEARED,
        "state": State.QUEUED.value,
        "queue_deadline": now_ms() + t.jobs.c.queue_deadline - t.jobs.c.queued_at,  # no limit stays none
        "queued_at": now_ms(),
        "published_at": None,
        "publish_count": 0,
    }


def too_late() -> ColumnElement[bool]:
    """Whether a queued job was not started within its queue time limit; one that was lost since was."""
    deadline = t.jobs.c.queue_deadline
    return and_(t.jobs.c.started_at.is_(None), deadline.is_not(None), deadline <= now_ms())


def put_into_outbox(connection: Connection, job_id: str, *, delay_seconds: float = 0) -> None:
    """Let a dispatcher publish the job, once this transaction commits (and the delay has passed)."""
    due = later(delay_seconds) if delay_seconds else 0
    connection.execute(insert(t.outbox).values(job_id=job_id, taken_until=due))


def tallied(connection: Connection, *states: State, tenant: str | None = None) -> int:
    """How many jobs are in these states, one tenant's or all, without counting them."""
    c = t.tallies.c
    where = [c.subject == "job", c.state.in_([state.value for state in states])]
    if tenant is not None:
        where.append(c.tenant == tenant)
    return int(connection.execute(select(func.coalesce(func.sum(c.number), 0)).where(*where)).scalar_one())
