"""How Alembic reaches the database: through the service's own engine, each migration in one transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from jobs.database import connect
from jobs.patience import UNBOUNDED
from jobs.settings import read_settings
from jobs.tables import metadata, triggers

_LOCK = 0x6F66706D  # any number; two processes that migrate at once wait for each other
config = context.config


def run(connection: Connection) -> None:
    """Migrate over a connection.

    `transactional_ddl` with the engine's BEGIN IMMEDIATE makes SQLite's DDL as atomic as Postgres'.
    `render_as_batch` because SQLite cannot alter a column or a constraint in place.
    """
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        transactional_ddl=True,
        transaction_per_migration=False,
        compare_type=True,
    )
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        _set_foreign_keys(connection, on=False)
    with context.begin_transaction():
        if not sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        if sqlite:  # it refuses to remake a table that a trigger names
            triggers.remove(connection)
        context.run_migrations()
        triggers.restore(connection)
        if sqlite and connection.execute(text("PRAGMA foreign_key_check")).first() is not None:
            raise RuntimeError("the migration would leave rows that refer to nothing")
    if sqlite:
        _set_foreign_keys(connection, on=True)


def _set_foreign_keys(connection: Connection, *, on: bool) -> None:
    """A batch makes a table anew, which must not cascade; within a transaction the pragma is deaf."""
    driver = connection.connection.driver_connection
    if driver is not None:
        driver.execute(f"PRAGMA foreign_keys={'ON' if on else 'OFF'}")


def main() -> None:
    """Migrate the database of `config` (or of the settings, for the alembic command)."""
    if context.is_offline_mode():
        raise SystemExit("offline migrations are not supported: SQLite's batches must see the tables")
    url = config.attributes.get("database_url") or read_settings().database_url
    engine = connect(url, patience=UNBOUNDED)
    try:
        with engine.connect() as connection:
            run(connection)
    finally:
        engine.dispose()


main()
