"""Fair share: which of a queue's jobs runs next is chosen when a worker is free, and tenants take turns.

The tenant with the fewest running jobs goes first, then the one with the fewest engine seconds in the last
hour, both divided by its weight; within a tenant by priority, then age. Priority never reaches across them.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    ScalarSelect,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
    update,
)

from jobs import tables as t
from jobs.database import now_ms
from jobs.errors import NotFoundError
from jobs.repository.base import Verbs, waits
from jobs.rows import Job
from jobs.settings import Settings
from jobs.states import State

HOUR_MS = 3_600_000
_PAGE = 20
_j, _a = t.jobs.c, t.attempts.c
# A step from tenant to tenant through the index: what it costs goes by tenants, not by the jobs that wait.
_WAITING_TENANTS = text(
    "WITH RECURSIVE waiting (tenant) AS ("
    " SELECT min(tenant) FROM jobs WHERE state = 'queued' AND queue = :queue"
    " UNION ALL"
    " SELECT (SELECT min(jobs.tenant) FROM jobs WHERE jobs.state = 'queued' AND jobs.queue = :queue"
    " AND jobs.tenant > waiting.tenant) FROM waiting WHERE waiting.tenant IS NOT NULL"
    ") SELECT tenant FROM waiting WHERE tenant IS NOT NULL"
)
MOST_AHEAD = 1000
"""Counting more than this of a tenant's own jobs would cost more than their number is worth."""
STANDING_SECONDS = 1.0
_OF_JOB = ("queue", "tenant", "priority", "id")


def _at_most(*where: ColumnElement[bool]) -> ScalarSelect[int]:
    """How many queued jobs of the tenant are like this, counted no further than is of use."""
    same = (waits(), _j.queue == bindparam("queue"), _j.tenant == bindparam("tenant"))
    some = select(_j.id).where(*same, *where).limit(MOST_AHEAD + 1).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


# Two ranges of one index: asked for together with "or", every job that waits would be looked at.
_AHEAD = select(
    _at_most(_j.priority > bindparam("priority"))
    + _at_most(_j.priority == bindparam("priority"), _j.id < bindparam("id"))
)
_HOUR_AGO = now_ms() - HOUR_MS
_START = case((_a.started_at > _HOUR_AGO, _a.started_at), else_=_HOUR_AGO)
_USED = (
    select(
        _j.tenant,
        func.sum(case((_a.finished_at.is_(None), 1), else_=0)).label("running"),
        func.sum(func.coalesce(_a.finished_at, now_ms()) - _START).label("milliseconds"),
    )
    .join_from(t.attempts, t.jobs, _j.id == _a.job_id)
    .where(or_(_a.finished_at.is_(None), _a.finished_at > _HOUR_AGO))
    .group_by(_j.tenant)
)


@dataclass(frozen=True)
class Share:
    """What a tenant runs and has used, and how it counts; `seconds` of engines within the last hour."""

    tenant: str
    weight: float = 1.0
    running: int = 0
    seconds: float = 0.0
    queued: int = 0

    def turn(self, started: int = 0) -> tuple[float, float, str]:
        """When it is this tenant's turn, after so many more of its jobs have started: the least goes first.

        Jobs that start now use no time yet; the name decides between equals, so that the order is one.
        """
        return ((self.running + started) / self.weight, self.seconds / self.weight, self.tenant)


class ShareVerbs(Verbs):
    """Whose turn it is in a queue."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        super().__init__(engine, settings)
        self._standings: dict[str, tuple[float, Mapping[str, Share]]] = {}

    def in_turn(self, queue: str, *, limit: int = _PAGE) -> Iterator[str]:
        """The ids of a queue's jobs in the order in which they would start as things stand; at most `limit`.

        A proposal: the claim decides. Most callers need the first alone, so each is looked up when it is
        asked for.
        """
        with self._read() as connection:
            turns = [(share.turn(), 0, share) for share in _waiting(connection, queue)]
        heapq.heapify(turns)
        lines: dict[str, Iterator[str]] = {}
        while turns and limit > 0:
            _, started, share = heapq.heappop(turns)
            line = lines.setdefault(share.tenant, self._line(queue, share.tenant, limit))
            job_id = next(line, None)
            if job_id is not None:
                limit -= 1
                yield job_id
                heapq.heappush(turns, (share.turn(started + 1), started + 1, share))

    def next_jobs(self, queue: str, *, limit: int = _PAGE) -> list[str]:
        """The same at once."""
        return list(self.in_turn(queue, limit=limit))

    def queue_position(self, job: Job) -> int | None:
        """How many jobs of its queue would start before this one as things stand.

        None if it isn't queued, or more than `MOST_AHEAD` of its own tenant go before it. What others have
        is as of the last second.
        """
        if job.state is not State.QUEUED:
            return None
        standing = self._standing(job)
        with self._read() as connection:
            own: int = connection.execute(_AHEAD, {name: getattr(job, name) for name in _OF_JOB}).scalar_one()
        if job.tenant not in standing or own > MOST_AHEAD:
            return None
        turn = standing[job.tenant].turn(own)
        others = (share for name, share in standing.items() if name != job.tenant)
        return own + sum(bisect_left(range(share.queued), turn, key=share.turn) for share in others)

    def _standing(self, job: Job) -> Mapping[str, Share]:
        """The tenants that wait in a job's queue, this one's among them: read at most once a second."""
        read_at, known = self._standings.get(job.queue, (0.0, {}))
        if job.tenant not in known or time.monotonic() - read_at > STANDING_SECONDS:
            with self._read() as connection:
                shares = _waiting(connection, job.queue)
                queued = _queued(connection, job.queue) if len(shares) > 1 else {}
            known = {share.tenant: replace(share, queued=queued.get(share.tenant, 0)) for share in shares}
            self._standings[job.queue] = (time.monotonic(), known)
        return known

    def _line(self, queue: str, tenant: str, limit: int) -> Iterator[str]:
        """A tenant's first jobs in a queue: one priority after the other, each by the index."""
        where = [waits(), _j.queue == queue, _j.tenant == tenant]
        while True:
            highest = select(func.max(_j.priority)).where(*where).scalar_subquery()
            first = select(_j.id, _j.priority).where(*where, _j.priority == highest)
            with self._read() as connection:
                rows = connection.execute(first.order_by(_j.id).limit(limit)).all()
            if not rows:
                return
            yield from (row.id for row in rows)
            where = [*where[:3], _j.priority < rows[0].priority]

    def list_tenants(self) -> list[Share]:
        """Every tenant by name, with what it runs, has queued, and used in the last hour."""
        with self._read() as connection:
            names = list(connection.execute(select(t.tenants.c.name)).scalars())
            return sorted(_shares(connection, names, _queued(connection)), key=lambda share: share.tenant)

    def set_weight(self, tenant: str, weight: float) -> Share:
        """Let a tenant count for more or less; NotFoundError (`tenant_not_found`) if there is none.

        Repeats are safe.
        """
        with self._write() as connection:
            named = update(t.tenants).where(t.tenants.c.name == tenant)
            if connection.execute(named.values(weight=weight)).rowcount != 1:
                raise NotFoundError("no such tenant", code="tenant_not_found")
            self._audit(connection, "tenant.update", tenant, tenant)
        return next(share for share in self.list_tenants() if share.tenant == tenant)


def _waiting(connection: Connection, queue: str) -> list[Share]:
    """The tenants with jobs that wait in a queue (not how many)."""
    names = list(connection.execute(_WAITING_TENANTS, {"queue": queue}).scalars())
    if len(names) == 1:  # nobody to share with: what it used does not matter
        return [Share(names[0])]
    return _shares(connection, names, {})


def _shares(connection: Connection, names: Sequence[str], queued: Mapping[str, int]) -> list[Share]:
    known = select(t.tenants.c.name, t.tenants.c.weight).where(t.tenants.c.name.in_(names))
    weights = {row.name: row.weight for row in connection.execute(known)}
    used = {row.tenant: row for row in connection.execute(_USED)}
    found = []
    for name in names:
        row = used.get(name)
        running, milliseconds = (0, 0) if row is None else (int(row.running), float(row.milliseconds))
        seconds = max(milliseconds, 0) / 1000
        found.append(Share(name, weights[name], running, seconds, queued.get(name, 0)))
    return found


def _queued(connection: Connection, queue: str | None = None) -> dict[str, int]:
    """Tenant → how many of its jobs wait (in a queue)."""
    c = t.tallies.c
    where = [c.subject == "job", c.state == State.QUEUED.value]
    if queue is not None:
        where.append(c.queue == queue)
    query = select(c.tenant, func.sum(c.number)).where(*where).group_by(c.tenant)
    return {row[0]: max(int(row[1]), 0) for row in connection.execute(query)}
