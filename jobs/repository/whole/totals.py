"""Figures that only count up, whatever is deleted: a row is noted where something ends, and rows are folded.

What is noted is noted in the transaction of what it tells of, by an INSERT alone, so that nobody waits for
anybody, nothing is counted twice, and every API process reads the same sums.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, func, insert, select

from jobs import tables as t
from jobs.repository.base import Verbs
from jobs.rows import Job

Subject = Literal["wait", "attempt", "job", "webhook"]
#: Upper bounds of the durations that are told apart, in seconds.
BOUNDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
#: In the table: longer than all of them, and without a duration.
BEYOND, NONE = -1, 0
_FOLD_AT = 500
_c = t.totals.c
_WORDS = (_c.subject, _c.tenant, _c.kind, _c.word, _c.bound)


@dataclass(frozen=True)
class Total:
    """How often something has happened.

    Attributes:
        subject: "wait" (an attempt began), "attempt" or "job" (one ended), "webhook" (a delivery did).
        kind: of the job; "" for webhooks.
        word: the queue, the outcome, "state verdict", "delivered" or "failed".
        bound: which of `BOUNDS` the duration is within; `BEYOND`, or `NONE` for what has no duration.
        number: how often.
        seconds: how long altogether.
    """

    subject: Subject
    kind: str
    word: str
    bound: int
    number: int
    seconds: float


def note(
    connection: Connection, subject: Subject, job: Job, word: str, milliseconds: int | None = None
) -> None:
    """Count one more, in the transaction of what it tells of."""
    note_of(connection, subject, job.tenant, word, kind=job.kind, milliseconds=milliseconds)


def note_of(
    connection: Connection,
    subject: Subject,
    tenant: str,
    word: str,
    *,
    kind: str = "",
    milliseconds: int | None = None,
) -> None:
    """The same where there is no job at hand."""
    took = max(milliseconds or 0, 0)  # clocks of a database may be set back
    bound = NONE if milliseconds is None else bound_of(took / 1000)
    row = {"subject": subject, "tenant": tenant, "kind": kind, "word": word, "bound": bound}
    connection.execute(insert(t.totals).values(**row, number=1, milliseconds=took))


def bound_of(seconds: float) -> int:
    """The smallest of `BOUNDS` that is not below; `BEYOND` if there is none."""
    place = bisect_left(BOUNDS, seconds)
    return BOUNDS[place] if place < len(BOUNDS) else BEYOND


class TotalVerbs(Verbs):
    """Reading and folding."""

    def totals(self, tenant: str | None = None) -> list[Total]:
        """All sums, of one tenant or of all."""
        words = (_c.subject, _c.kind, _c.word, _c.bound)
        query = select(*words, func.sum(_c.number), func.sum(_c.milliseconds)).group_by(*words)
        if tenant is not None:
            query = query.where(_c.tenant == tenant)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [Total(*row[:4], int(row[4]), float(row[5]) / 1000) for row in rows]

    def fold_totals(self) -> int:
        """Put rows of equal words together; how many rows went. The sums stay what they are.

        Race: what is summed is what this very statement deleted, so two folds at once take different rows.
        """
        with self._read() as connection:
            if connection.execute(select(func.count()).select_from(t.totals)).scalar_one() < _FOLD_AT:
                return 0
        with self._write() as connection:
            newest = connection.execute(select(func.coalesce(func.max(_c.id), 0))).scalar_one()
            gone = delete(t.totals).where(_c.id <= newest).returning(*_WORDS, _c.number, _c.milliseconds)
            numbers, times = Counter[Any](), Counter[Any]()
            rows = connection.execute(gone).all()
            for *words, number, took in rows:
                numbers[tuple(words)] += number
                times[tuple(words)] += took
            names = [column.name for column in _WORDS]
            folded = [
                {**dict(zip(names, words, strict=True)), "number": number, "milliseconds": times[words]}
                for words, number in numbers.items()
            ]
            if folded:  # else another process has folded them meanwhile
                connection.execute(insert(t.totals), folded)
        return len(rows) - len(folded)

    def busy_workers(self) -> set[str]:
        """The workers whose attempts hold a job."""
        held = select(t.jobs.c.worker_id).where(t.jobs.c.lease_expires_at.is_not(None))
        with self._read() as connection:
            return {name for name in connection.execute(held).scalars() if name is not None}
