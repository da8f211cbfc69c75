"""The database's schema, brought to the newest version by the migrations that the distribution carries."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.database import connect


def upgrade(database_url: str) -> None:
    """Migrate to the newest version; repeating it changes nothing, and a failure leaves the old schema."""
    config = _config()
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")


def head() -> str | None:
    """The newest version that this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def current(database_url: str) -> str | None:
    """The version of a database; None for an empty one."""
    engine = connect(database_url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _config() -> Config:
    return Config(str(files("migrations") / "alembic.ini"))
