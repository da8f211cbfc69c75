"""How long a process waits for its neighbours: the database, the broker and the artifact store.

A neighbour that is gone says so at once; one that is frozen, or whose connection is half-open (packets are
dropped, nothing closes), says nothing for ever. So every call has a limit of its own, on this side.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Seconds to wait: to connect, for an answer, for a free connection of the pool, and for SQLite's lock.

    `answer` None is no limit, for work on the whole database such as a migration. SQLite's lock is held for
    moments, but those who wait for it do not queue: the unlucky need more patience.
    """

    connect: float = 3.0
    answer: float | None = 10.0
    pool: float = 10.0
    lock: float = 30.0


REQUEST = Patience(connect=2.0, answer=3.5, pool=2.0, lock=8.0)
"""Of what answers requests. The first three after each other, or the last, stay below ten seconds."""
WORK = Patience()
"""Of what nobody waits for at the other end of a connection: workers, commands."""
UNBOUNDED = Patience(answer=None)
"""Of migrations."""

REQUEST_SECONDS = 6.0
"""What the answers of a database may take in all until a request is answered: many slow ones add up."""


@dataclass
class Budget:
    """How long a request may still wait for the database, in seconds; its threads share it."""

    seconds: float = REQUEST_SECONDS

    def lift(self) -> None:
        """From now on there is no limit but that of each answer: nobody waits, or it is a wait on purpose."""
        self.seconds = math.inf


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def begin_budget() -> Budget:
    """Give what follows in this context, and in threads that are given it, a budget of its own."""
    budget = Budget()
    _budget.set(budget)
    return budget


def current_budget() -> Budget:
    """That of this context; without a limit where there is none."""
    return _budget.get() or Budget(math.inf)


BROKER_CONNECT_SECONDS = 3
BROKER_ANSWER_SECONDS = 3
BROKER_CHECK_SECONDS = 3
"""An idle connection is asked for a sign of life so often, and an overdue answer is waited for so long."""
