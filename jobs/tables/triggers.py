"""The triggers that keep `changes` and `tallies`, said once for both databases.

They are made by a migration and by `metadata.create_all`, and anew after each migration: on SQLite it goes
without them, because a table that a trigger names can't be remade.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, MetaData, event, inspect
from sqlalchemy.dialects import postgresql, sqlite

from jobs.database import now_ms

_PREFIX = "optipfair_"
_TALLY = "INSERT INTO tallies (subject, tenant, queue, kind, state, number, milliseconds)"
_CHANGE = "INSERT INTO changes (transaction_id, job_id, version, last_seq, state, noted_at)"
_TOOK = "coalesce({row}.finished_at - {row}.started_at, 0)"


@dataclass(frozen=True)
class Trigger:
    """One trigger; `{transaction}` and `{now}` in its statements stand for the dialect's expressions."""

    name: str
    table: str
    event: str
    when: str | None
    statements: tuple[str, ...]


def _job(row: str, sign: int) -> str:
    words = ", ".join(f"{row}.{name}" for name in ("tenant", "queue", "kind", "state"))
    return f"{_TALLY} VALUES ('job', {words}, {sign}, 0)"


def _attempt(row: str, sign: int) -> str:
    took = f"{sign} * {_TOOK.format(row=row)}"
    words = f"'attempt', tenant, '', '', {row}.outcome, {sign}, {took}"
    return f"{_TALLY} SELECT {words} FROM jobs WHERE id = {row}.job_id"  # noqa: S608 - words of this module alone


def _attempts_of(row: str) -> str:
    took = f"-sum({_TOOK.format(row='attempts')})"
    words = f"'attempt', {row}.tenant, '', '', outcome, -count(*), {took}"
    source = f"FROM attempts WHERE job_id = {row}.id GROUP BY outcome"
    return f"{_TALLY} SELECT {words} {source}"


def _change(row: str, *, gone: bool = False) -> str:
    seen = "NULL, NULL, NULL" if gone else f"{row}.version, {row}.last_seq, {row}.state"
    return f"{_CHANGE} VALUES ({{transaction}}, {row}.id, {seen}, {{now}})"


TRIGGERS = (
    Trigger("job_made", "jobs", "AFTER INSERT", None, (_job("NEW", 1),)),
    Trigger(
        "job_moved",
        "jobs",
        "AFTER UPDATE OF state",
        "OLD.state <> NEW.state",
        (_job("OLD", -1), _job("NEW", 1)),
    ),
    # Before, because the attempts go with the job.
    Trigger("job_ending", "jobs", "BEFORE DELETE", None, (_attempts_of("OLD"),)),
    Trigger("job_gone", "jobs", "AFTER DELETE", None, (_job("OLD", -1), _change("OLD", gone=True))),
    Trigger(
        "job_changed", "jobs", "AFTER UPDATE OF version", "OLD.version <> NEW.version", (_change("NEW"),)
    ),
    Trigger("attempt_made", "attempts", "AFTER INSERT", None, (_attempt("NEW", 1),)),
    Trigger(
        "attempt_moved",
        "attempts",
        "AFTER UPDATE OF outcome, started_at, finished_at",
        f"OLD.outcome <> NEW.outcome OR {_TOOK.format(row='OLD')} <> {_TOOK.format(row='NEW')}",
        (_attempt("OLD", -1), _attempt("NEW", 1)),
    ),
)
_NAMES = {_PREFIX + trigger.name for trigger in TRIGGERS}


def install(connection: Connection) -> None:
    """Make those triggers that are not there."""
    there = _present(connection)
    for trigger in TRIGGERS:
        if _PREFIX + trigger.name not in there:
            for statement in _statements(trigger, connection.dialect.name):
                connection.exec_driver_sql(statement)


def restore(connection: Connection) -> None:
    """Make anew what a migration has lost; nothing before the schema knows of tallies."""
    if inspect(connection).has_table("tallies"):
        install(connection)


def remove(connection: Connection) -> None:
    """Remove all of them, and on Postgres their functions."""
    for trigger in TRIGGERS:
        name = _PREFIX + trigger.name
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        else:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON {trigger.table}")
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {name}()")


def made_with(metadata: MetaData) -> None:
    """Let `metadata.create_all` make the triggers too."""

    def after_create(_target: MetaData, connection: Connection, **_: Any) -> None:
        install(connection)

    event.listen(metadata, "after_create", after_create)


def _present(connection: Connection) -> set[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
            " WHERE NOT tgisinternal AND pg_table_is_visible(pg_class.oid)"
        )
    return set(connection.exec_driver_sql(query).scalars()) & _NAMES


def _statements(trigger: Trigger, dialect: str) -> Iterator[str]:
    name, when = _PREFIX + trigger.name, f" WHEN ({trigger.when})" if trigger.when else ""
    if dialect == "sqlite":
        body = _body(trigger, "0", str(now_ms().compile(dialect=sqlite.dialect())))
        yield f"CREATE TRIGGER {name} {trigger.event} ON {trigger.table} FOR EACH ROW{when} BEGIN {body} END"
        return
    # The whole transaction's number, also within a savepoint.
    number = "CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)"
    body = _body(trigger, number, str(now_ms().compile(dialect=postgresql.dialect())))  # type: ignore[no-untyped-call]
    row = "OLD" if "DELETE" in trigger.event else "NEW"
    yield (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} RETURN {row}; END $$"
    )
    yield (
        f"CREATE TRIGGER {name} {trigger.event} ON {trigger.table} FOR EACH ROW{when}"
        f" EXECUTE FUNCTION {name}()"
    )


def _body(trigger: Trigger, transaction: str, now: str) -> str:
    return " ".join(
        statement.format(transaction=transaction, now=now) + ";" for statement in trigger.statements
    )
