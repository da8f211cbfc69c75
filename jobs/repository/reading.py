"""Questions about jobs. None of them takes a write lock; each is answered by an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, bindparam, literal, select, true

from jobs import tables as t
from jobs.database import now_ms
from jobs.errors import InvalidError, NotFoundError
from jobs.ids import id_range, is_id, is_text, lowest_id_at
from jobs.repository.base import JOB_COLUMNS, Verbs, kept_bytes
from jobs.rows import (
    ARTIFACT_FIELDS,
    Artifact,
    Attempt,
    Check,
    Event,
    Job,
    JsonObject,
    Page,
    Version,
    job_error,
    job_from_row,
)
from jobs.states import Outcome, State

ARCHIVE = "*"
"""The name of the row that describes the archive of all artifacts."""
CLOCK_SKEW_MS = 60_000
"""How far the clock that made an id may be from the database's."""
MAX_PAGE = 100
_JOBS = select(*JOB_COLUMNS)
# Made once: building a statement and its cache key costs as much as running it.
_BY_ID = _JOBS.where(t.jobs.c.id == bindparam("job_id"))
_VERSION = select(t.jobs.c.tenant, t.jobs.c.version, t.jobs.c.last_seq, t.jobs.c.state).where(
    t.jobs.c.id == bindparam("job_id")
)


class ReadingVerbs(Verbs):
    """What can be asked about jobs; `tenant=None` asks about every tenant's."""

    def get_job(self, job_id: str, tenant: str | None = None) -> Job:
        """The job; NotFoundError if there is none, or if it is another tenant's."""
        row = None
        if is_id(job_id):  # anything else could also be text that a database refuses to compare
            with self._read() as connection:
                row = connection.execute(_BY_ID, {"job_id": job_id}).first()
        if row is None or (tenant is not None and row.tenant != tenant):
            raise NotFoundError("no such job", code="job_not_found")
        return job_from_row(row)

    def get_version(self, job_id: str, tenant: str | None = None) -> Version:
        """What an ETag is made of, for a fraction of the cost of the job; NotFoundError as in get_job."""
        row = None
        if is_id(job_id):
            with self._read() as connection:
                row = connection.execute(_VERSION, {"job_id": job_id}).one_or_none()
        if row is None or (tenant is not None and row.tenant != tenant):
            raise NotFoundError("no such job", code="job_not_found")
        return Version(row.version, row.last_seq, State(row.state).terminal)

    def list_jobs(
        self,
        tenant: str | None,
        *,
        state: State | None = None,
        kind: str | None = None,
        verdict: str | None = None,
        labels: Mapping[str, str | None] | None = None,
        created_after: int | None = None,
        created_before: int | None = None,
        id_prefix: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """A page of jobs, newest first, by keyset: its cost does not depend on how far down it is.

        `cursor` is the `next_cursor` of the page before; InvalidError (`cursor_invalid`) for anything else.
        `created_after` and `created_before` in milliseconds since the epoch, exclusive. A label without a
        value (None) asks whether it is there.
        """
        if cursor is not None and not is_id(cursor):
            raise InvalidError("cursor: not one that a list has given", code="cursor_invalid")
        chosen = labels or {}
        if not all(part is None or is_text(part) for label in chosen.items() for part in label):
            return Page(items=[], next_cursor=None)  # no label can be like that
        bounds = _bounds(created_after, created_before, id_prefix)
        if bounds is None:
            return Page(items=[], next_cursor=None)  # nor any id
        size = min(max(limit, 1), MAX_PAGE)
        values: dict[str, Any] = {
            "tenant": tenant,
            "state": None if state is None else state.value,
            "kind": kind,
            "verdict": verdict,
            "created_after": created_after,
            "created_before": created_before,
            "cursor": cursor,
            **bounds,
        }
        given = {name: value for name, value in values.items() if value is not None}
        query = _page_query(frozenset(given), tuple(value is not None for value in chosen.values()))
        for number, (name, value) in enumerate(chosen.items()):
            given |= {f"key_{number}": name} | ({} if value is None else {f"value_{number}": value})
        with self._read() as connection:
            rows = connection.execute(query, {**given, "size": size + 1}).all()
        items = [job_from_row(row) for row in rows[:size]]
        return Page(items=items, next_cursor=items[-1].id if len(rows) > size else None)

    def list_events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """The job's events with `seq` > `after`, in order."""
        query = (
            select(t.events)
            .where(t.events.c.job_id == job_id, t.events.c.seq > after)
            .order_by(t.events.c.seq)
            .limit(limit)
        )
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        return [Event(**{**row, "data": json.loads(row["data"])}) for row in rows]

    def list_attempts(self, job_id: str) -> list[Attempt]:
        """The job's attempts, in order."""
        query = select(t.attempts).where(t.attempts.c.job_id == job_id).order_by(t.attempts.c.number)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        names = ("job_id", "number", "worker_id", "started_at", "finished_at")
        return [
            Attempt(outcome=Outcome(row["outcome"]), error=job_error(row), **{n: row[n] for n in names})
            for row in rows
        ]

    def list_artifacts(self, job_id: str) -> list[Artifact]:
        """The published files, sorted by name; the archive is not among them."""
        query = (
            select(t.artifacts)
            .where(t.artifacts.c.job_id == job_id, t.artifacts.c.name != ARCHIVE)
            .order_by(t.artifacts.c.name)
        )
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        return sorted((_artifact(row) for row in rows), key=lambda item: item.name)

    def get_artifact(self, job_id: str, name: str) -> Artifact | None:
        """One published file; `*` is the archive of all of them (size and SHA-256 of the tar)."""
        if not is_id(job_id) or not is_text(name):
            return None
        query = select(t.artifacts).where(t.artifacts.c.job_id == job_id, t.artifacts.c.name == name)
        with self._read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _artifact(row)

    def get_metrics(self, job_id: str) -> JsonObject | None:
        """The metrics of a succeeded job."""
        text = self._column(job_id, t.jobs.c.metrics)
        return None if text is None else json.loads(text)

    def get_checks(self, job_id: str) -> list[Check]:
        """The checks of an ended job's gates."""
        text = self._column(job_id, t.jobs.c.checks)
        return [] if text is None else [Check(**item) for item in json.loads(text)]

    def kept_bytes(self) -> dict[str, int]:
        """What each tenant's files take, in bytes; files that jobs share count once."""
        with self._read() as connection:
            return kept_bytes(connection)

    def largest_jobs(self, tenant: str | None = None, *, limit: int = 10) -> list[tuple[Job, int]]:
        """The jobs whose files are largest, with their bytes; files that jobs share count for each."""
        a = t.artifacts.c
        query = (
            select(*JOB_COLUMNS, a.size)
            .join(t.artifacts, a.job_id == t.jobs.c.id)
            .where(a.name == ARCHIVE, true() if tenant is None else t.jobs.c.tenant == tenant)
            .order_by(a.size.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return [(job_from_row(row[:-1]), row[-1]) for row in connection.execute(query)]

    def now(self) -> int:
        """The database's clock, in milliseconds since the epoch."""
        with self._read() as connection:
            return connection.execute(select(now_ms())).scalar_one()

    def ping(self) -> None:
        """Raises SQLAlchemy's error if the database does not answer."""
        with self._read() as connection:
            connection.execute(select(literal(1)))

    def _column(self, job_id: str, column: Any) -> str | None:
        with self._read() as connection:
            return connection.execute(select(column).where(t.jobs.c.id == job_id)).scalar_one_or_none()


def _bounds(after: int | None, before: int | None, prefix: str | None) -> dict[str, str] | None:
    """The first and the last id that a time or a prefix leaves possible; None if they leave none."""
    firsts = [] if after is None else [lowest_id_at(after - CLOCK_SKEW_MS)]
    lasts = [] if before is None else [lowest_id_at(before + CLOCK_SKEW_MS)]
    if prefix is not None:
        ends = id_range(prefix)
        if ends is None:
            return None
        firsts.append(ends[0])
        lasts.append(ends[1])
    return ({"first_id": max(firsts)} if firsts else {}) | ({"last_id": min(lasts)} if lasts else {})


@lru_cache(maxsize=256)
def _page_query(given: frozenset[str], labels: tuple[bool, ...]) -> Select[Any]:
    """The query of a page for one combination of filters: built once, because building costs milliseconds.

    `labels` says for each label whether its value is asked for too.
    """
    c = t.jobs.c
    query, key = _JOBS, c.id
    for number, valued in enumerate(labels):
        label = t.job_labels.alias(f"label_{number}")
        query = query.join(label, label.c.job_id == c.id).where(label.c.key == bindparam(f"key_{number}"))
        if valued:
            query = query.where(label.c.value == bindparam(f"value_{number}"))
        if "tenant" in given:
            query = query.where(label.c.tenant == bindparam("tenant"))
        key = label.c.job_id if number == 0 else key  # its index then gives the order, without a sort
    for name in sorted({"tenant", "state", "kind", "verdict"} & given):
        query = query.where(c[name] == bindparam(name))
    # The bounds on the id let the index begin and end the scan; the column says exactly.
    if "first_id" in given:
        query = query.where(key >= bindparam("first_id"))
    if "last_id" in given:
        query = query.where(key <= bindparam("last_id"))
    if "created_after" in given:
        query = query.where(c.created_at > bindparam("created_after"))
    if "created_before" in given:
        query = query.where(c.created_at < bindparam("created_before"))
    if "cursor" in given:
        query = query.where(key < bindparam("cursor"))
    return query.order_by(key.desc()).limit(bindparam("size"))


def _artifact(row: Mapping[Any, Any]) -> Artifact:
    return Artifact(**{name: row[name] for name in ARTIFACT_FIELDS})
