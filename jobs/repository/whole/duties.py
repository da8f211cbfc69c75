"""Work on the whole database or store: one process at a time does it, and goes on where another stopped."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.ids import new_id
from jobs.repository.base import Verbs, later

_c = t.duties.c


@dataclass(frozen=True)
class Duty:
    """A round of a duty; `position` is how far an earlier process had come, None for the beginning."""

    name: str
    token: str
    position: str | None


class DutyVerbs(Verbs):
    """Whose turn it is."""

    def take_duty(self, name: str, *, lease_seconds: float) -> Duty | None:
        """The duty, if it is due and no other process is at it (or that one's lease has run out).

        Race: one conditional UPDATE lets one of several win.
        """
        free = (_c.name == name, _c.due_at <= now_ms(), _c.taken_until <= now_ms())
        with self._read() as connection:  # a plain read: what is not due takes no write lock
            held = connection.execute(select(_c.name).where(_c.name == name)).first() is not None
            if held and connection.execute(select(_c.name).where(*free)).first() is None:
                return None
        token = new_id()
        with self._write() as connection:
            new = self._insert(t.duties).values(name=name, taken_until=0, due_at=0)
            connection.execute(new.on_conflict_do_nothing())
            taken = update(t.duties).where(*free).values(token=token, taken_until=later(lease_seconds))
            row = connection.execute(taken.returning(_c.position)).first()
        return None if row is None else Duty(name, token, row.position)

    def keep_duty(self, duty: Duty, position: str | None, *, lease_seconds: float) -> bool:
        """Say how far it has come, and go on; False: another process has taken it over, so stop."""
        with self._write() as connection:
            mine = update(t.duties).where(_c.name == duty.name, _c.token == duty.token)
            kept = mine.values(position=position, taken_until=later(lease_seconds))
            return connection.execute(kept).rowcount == 1

    def end_duty(self, duty: Duty, *, again_in_seconds: float, position: str | None = None) -> None:
        """The round is over; the next begins there, after that time. A repeat is safe."""
        with self._write() as connection:
            mine = update(t.duties).where(_c.name == duty.name, _c.token == duty.token)
            connection.execute(
                mine.values(token=None, position=position, taken_until=0, due_at=later(again_in_seconds))
            )
