"""What is kept of the tables as a whole: what changed lately, how many there are of what, whose turn it is.

Triggers (`jobs.tables.triggers`) write `changes` and `tallies` in the transaction of the change itself,
whoever makes it: a worker of an earlier release too. Both only ever grow by rows, so that no two writers wait
for each other over a counter; a background loop folds the tallies together and forgets old changes.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text, text

from jobs.tables.base import ID, NAME, SERIAL, metadata

changes = Table(
    "changes",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("transaction_id", BigInteger, nullable=False),  # of Postgres; 0 on SQLite, which has one writer
    Column("job_id", ID, nullable=False),
    Column("version", BigInteger),  # NULL: the job was deleted
    Column("last_seq", BigInteger),
    Column("state", String(16)),
    Column("noted_at", BigInteger, nullable=False),
    Index("ix_changes_transaction_id", "transaction_id"),
    sqlite_autoincrement=True,  # a number that was forgotten must not come again: readers ask "since which"
)

# The sum over rows with equal words is how many there are: of jobs, or of attempts (without queue and kind).
tallies = Table(
    "tallies",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("subject", String(8), nullable=False),  # "job" or "attempt"
    Column("tenant", NAME, nullable=False),
    Column("queue", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # of a job; of an attempt its outcome
    Column("number", BigInteger, nullable=False),  # negative where something left this state
    Column("milliseconds", BigInteger, nullable=False, server_default=text("0")),  # that attempts took
    Index("ix_tallies_state_tenant", "state", "tenant"),
)

duties = Table(
    "duties",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("token", ID),  # who is at it: fences a process that was taken for dead
    Column("taken_until", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("position", Text),  # how far a round has come; NULL: it begins anew
)

# What has happened so often: rows of equal words are put together now and then.
totals = Table(
    "totals",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("subject", String(16), nullable=False),
    Column("tenant", NAME, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("word", String(64), nullable=False),
    Column("bound", Integer, nullable=False),  # seconds that its duration is within
    Column("number", BigInteger, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
)
