"""How many there are, without counting: sums over what triggers noted, folded together and put right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
)

from jobs import tables as t
from jobs.database import now_ms, snapshot, taking_long
from jobs.repository.base import Verbs, waits
from jobs.states import State

Words = tuple[str, ...]
Sums = dict[Words, tuple[int, int]]
"""Subject, tenant, queue, kind and state → the number, and the milliseconds that attempts took."""
_FOLD_AT = 256
"""So many rows beyond twice the different ones are folded together."""
_COUNTING_SECONDS = 600.0
_c = t.tallies.c
_WORDS = (_c.subject, _c.tenant, _c.queue, _c.kind, _c.state)
_TOOK = func.coalesce(t.attempts.c.finished_at - t.attempts.c.started_at, 0)
_NOTHING: ColumnElement[str] = literal_column("''")
_j = t.jobs.c
_JOBS = select(literal("job"), _j.tenant, _j.queue, _j.kind, _j.state, func.count(), literal(0)).group_by(
    _j.tenant, _j.queue, _j.kind, _j.state
)
_ATTEMPTS = (
    select(
        *(literal("attempt"), _j.tenant, _NOTHING, _NOTHING, t.attempts.c.outcome),
        *(func.count(), func.sum(_TOOK)),
    )
    .join_from(t.attempts, t.jobs, _j.id == t.attempts.c.job_id)
    .group_by(_j.tenant, t.attempts.c.outcome)
)
_NOTED = select(*_WORDS, func.sum(_c.number), func.sum(_c.milliseconds)).group_by(*_WORDS)


class TallyVerbs(Verbs):
    """Figures of one tenant's jobs, or of all; what they cost does not grow with the jobs."""

    def count_states(self, tenant: str | None = None) -> dict[tuple[str, str], int]:
        """(state, kind) → number of jobs, of one tenant or of all."""
        rows = self._sums(_of("job", tenant), _c.state, _c.kind)
        return {(row.state, row.kind): int(row.number) for row in rows}

    def attempt_totals(self, tenant: str | None = None) -> dict[str, tuple[int, float]]:
        """Outcome → number of attempts that ended so (or run), and the seconds that they took together.

        Those of one tenant's jobs, or all.
        """
        rows = self._sums(_of("attempt", tenant), _c.state)
        return {row.state: (int(row.number), float(row.milliseconds) / 1000) for row in rows}

    def queue_lengths(self, tenant: str | None = None) -> dict[str, int]:
        """For each queue with waiting jobs (of one tenant, or of all): how many wait."""
        rows = self._sums((*_of("job", tenant), _c.state == State.QUEUED.value), _c.queue)
        return {row.queue: int(row.number) for row in rows}

    def queue_age_seconds(self, tenant: str | None = None) -> dict[str, float]:
        """For each queue with waiting jobs (of one tenant, or of all): how long the oldest has waited."""
        ages = {}
        with self._read() as connection:
            for queue in self.queue_lengths(tenant):
                mine = true() if tenant is None else _j.tenant == tenant
                oldest = select(now_ms() - func.min(_j.queued_at)).where(waits(), _j.queue == queue, mine)
                waited = connection.execute(oldest).scalar_one()
                if waited is not None:
                    ages[queue] = max(waited, 0) / 1000
        return ages

    def fold_tallies(self) -> int:
        """Put rows of equal words together; returns how many rows went. The sums stay what they are.

        Race: what is summed here is what this very statement deleted, so another fold at once takes other
        rows, and a reader sees the rows before or those after.
        """
        if not self._worth_folding():
            return 0
        with self._write() as connection:
            newest = connection.execute(select(func.coalesce(func.max(_c.id), 0))).scalar_one()
            gone = delete(t.tallies).where(_c.id <= newest).returning(*_WORDS, _c.number, _c.milliseconds)
            rows = connection.execute(gone).all()
            sums = {words: sum_ for words, sum_ in _summed(rows).items() if sum_ != (0, 0)}
            _note(connection, sums)
        return len(rows) - len(sums)

    def reconcile_tallies(self) -> int:
        """Count all jobs and attempts, and note what the tallies differ by; returns how many figures did.

        One snapshot of the database holds both, so it is exact while others write. On Postgres it locks
        nobody out; on SQLite writers wait for it.
        """
        with snapshot(self.engine) as connection, taking_long(connection, _COUNTING_SECONDS):
            counted = _summed([*connection.execute(_JOBS), *connection.execute(_ATTEMPTS)])
            noted = _summed(connection.execute(_NOTED))
            wrong = _differences(counted, noted)
            _note(connection, wrong)
        return len(wrong)

    def _worth_folding(self) -> bool:
        with self._read() as connection:
            rows = connection.execute(select(func.count()).select_from(t.tallies)).scalar_one()
            if rows < _FOLD_AT:
                return False
            different = select(*_WORDS).distinct().subquery()
            kinds = connection.execute(select(func.count()).select_from(different)).scalar_one()
        return rows > 2 * kinds + _FOLD_AT

    def _sums(self, where: Iterable[ColumnElement[bool]], *words: ColumnElement[str]) -> Sequence[Any]:
        number = func.sum(_c.number).label("number")
        took = func.sum(_c.milliseconds).label("milliseconds")
        query = select(*words, number, took).where(*where).group_by(*words).having(func.sum(_c.number) != 0)
        with self._read() as connection:
            return connection.execute(query).all()


def _of(subject: str, tenant: str | None) -> tuple[ColumnElement[bool], ...]:
    """What a figure is of: one tenant's, or everybody's for None."""
    return (_c.subject == subject, *(() if tenant is None else (_c.tenant == tenant,)))


def _summed(rows: Iterable[Sequence[Any]]) -> Sums:
    sums: Sums = {}
    for *words, number, took in rows:
        before = sums.get(tuple(words), (0, 0))
        sums[tuple(words)] = (before[0] + int(number), before[1] + int(took))
    return sums


def _differences(counted: Mapping[Words, tuple[int, int]], noted: Mapping[Words, tuple[int, int]]) -> Sums:
    wrong = {}
    for words in {*counted, *noted}:
        (number, took), (was, before) = counted.get(words, (0, 0)), noted.get(words, (0, 0))
        if (number, took) != (was, before):
            wrong[words] = (number - was, took - before)
    return wrong


def _note(connection: Connection, sums: Sums) -> None:
    names = [column.name for column in _WORDS]
    rows = [
        {**dict(zip(names, words, strict=True)), "number": number, "milliseconds": took}
        for words, (number, took) in sums.items()
    ]
    if rows:
        connection.execute(insert(t.tallies), rows)
