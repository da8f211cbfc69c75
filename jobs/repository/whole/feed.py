"""What changed since: one small question for all who wait, whatever they wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Text,
    bindparam,
    cast,
    column,
    delete,
    func,
    select,
    table,
)

from jobs import tables as t
from jobs.database import now_ms
from jobs.repository.base import Verbs, later
from jobs.rows import Version
from jobs.states import State

KEPT_SECONDS = 120
"""Changes are kept at least so long."""
PATIENCE_SECONDS = KEPT_SECONDS / 2
"""Who did not ask for longer than this can't rely on the feed, and looks at all that it watches."""
_AT_ONCE = 1000
"""Ids in one query: a statement takes at most 65,535 values on Postgres, and 32,766 on SQLite."""

_SEQUENCES = table("sqlite_sequence", column("name"), column("seq"))


def _query(
    horizon: ColumnElement[int], place: ColumnElement[int], *where: ColumnElement[bool]
) -> Select[Any]:
    """The horizon and the time now, beside each change from the place `since` on."""
    c = t.changes.c
    present = select(horizon.label("horizon"), now_ms().label("asked_at")).where(*where).subquery()
    return (
        select(present.c.horizon, present.c.asked_at, c.job_id, c.version, c.last_seq, c.state)
        .select_from(present.outerjoin(t.changes, place >= bindparam("since")))
        .order_by(c.id)
    )


# Numbers of rows are given out before their transaction commits: a lower one may appear after a higher one.
# A transaction that this snapshot does not see is one that still ran, or began later: its number is not below
# the snapshot's xmin. What is asked for from that xmin on is complete; some of it is seen twice.
_XMIN = func.pg_snapshot_xmin(func.pg_current_snapshot())
_POSTGRES = _query(cast(cast(_XMIN, Text), BigInteger), t.changes.c.transaction_id)
# One writer at a time: rows appear in the order of their numbers.
_NEXT = func.coalesce(func.max(_SEQUENCES.c.seq) + 1, 1)
_SQLITE = _query(_NEXT, t.changes.c.id, _SEQUENCES.c.name == "changes")
_NEVER = 2**62
"""A place in the feed that no change reaches."""


@dataclass(frozen=True)
class News:
    """What changed: the newest version of each job, None for a deleted one; and from where to ask next.

    `asked_at` is the database's clock, in milliseconds: more than `PATIENCE_SECONDS` after the answer before,
    changes may have been forgotten in between.
    """

    horizon: int
    asked_at: int
    versions: Mapping[str, Version | None]


class FeedVerbs(Verbs):
    """The feed of changes."""

    def changes_since(self, horizon: int | None) -> News:
        """The jobs that changed since an earlier answer gave this `horizon`; None: nothing, but from now on.

        Nothing is missed, whatever commits in between; a change may be told twice.
        """
        query = _POSTGRES if self._skip_locked else _SQLITE
        with self._read() as connection:
            rows = connection.execute(query, {"since": _NEVER if horizon is None else horizon}).all()
        versions: dict[str, Version | None] = {}
        for row in rows:
            if row.job_id is not None:
                versions[row.job_id] = _newer(versions, row)
        return News(rows[0].horizon, rows[0].asked_at, versions)

    def versions(self, job_ids: Sequence[str]) -> dict[str, Version]:
        """Row version, newest event and terminality of many jobs, a thousand to a query."""
        c = t.jobs.c
        found: dict[str, Version] = {}
        with self._read() as connection:
            for first in range(0, len(job_ids), _AT_ONCE):
                ids = job_ids[first : first + _AT_ONCE]
                query = select(c.id, c.version, c.last_seq, c.state).where(c.id.in_(ids))
                found |= {row.id: _version(row) for row in connection.execute(query)}
        return found

    def forget_changes(self) -> int:
        """Forget the changes that everybody has seen; returns how many. Repeats are safe."""
        c = t.changes.c
        old = c.noted_at < later(-KEPT_SECONDS)
        with self._read() as connection:  # a plain read: nothing to do takes no write lock
            newest = connection.execute(select(func.max(c.id)).where(old)).scalar_one()
        if newest is None:
            return 0
        with self._write() as connection:
            return connection.execute(delete(t.changes).where(c.id <= newest, old)).rowcount


def _version(row: Any) -> Version:
    return Version(row.version, row.last_seq, State(row.state).terminal)


def _newer(known: Mapping[str, Version | None], row: Any) -> Version | None:
    """The newest of what is told of one job; a deleted one does not come back."""
    if row.version is None or (row.job_id in known and known[row.job_id] is None):
        return None
    before, told = known.get(row.job_id), _version(row)
    return before if before is not None and before.version > told.version else told
