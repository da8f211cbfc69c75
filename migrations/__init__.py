"""The schema's history, and the three questions about it: what is newest, what is there, bring it up."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from jobs.database import connect, reading


def config(database_url: str) -> Config:
    """Alembic's configuration for a database."""
    settings = Config(str(Path(__file__).with_name("alembic.ini")))
    settings.attributes["database_url"] = database_url
    return settings


def head() -> str:
    """The newest revision that this code knows."""
    newest = ScriptDirectory.from_config(config("")).get_current_head()
    if newest is None:
        raise RuntimeError("the package of migrations holds no revision")
    return newest


def current(database_url: str) -> str | None:
    """The revision that the database is at; None for an empty one."""
    engine = connect(database_url)
    try:
        with reading(engine) as connection:
            return revision(connection)
    finally:
        engine.dispose()


def revision(connection: Connection) -> str | None:
    """The revision of the database behind a connection; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema up. Each migration is one transaction: one that fails leaves the old schema."""
    command.upgrade(config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Bring the schema down to a revision ("base": nothing is left)."""
    command.downgrade(config(database_url), revision)
