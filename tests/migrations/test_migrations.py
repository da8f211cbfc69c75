"""The schema goes up, down and up again on both engines, and a migration that fails changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

import migrations
from jobs.database import connect, writing
from jobs.tables import metadata
from jobs.tables.triggers import TRIGGERS
from tests.servers import Postgres


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'service.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield server.create_database(f"migrations_{tmp_path.name}")


def table_names(url: str) -> set[str]:
    engine = connect(url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def test_up_down_up(url: str) -> None:
    wanted = set(metadata.tables)
    assert migrations.current(url) is None
    migrations.upgrade(url)
    assert migrations.current(url) == migrations.head()
    assert table_names(url) == wanted
    migrations.downgrade(url, "base")
    assert table_names(url) == set()
    migrations.upgrade(url)
    assert table_names(url) == wanted


def test_upgrading_twice_changes_nothing(url: str) -> None:
    migrations.upgrade(url)
    migrations.upgrade(url)
    assert migrations.current(url) == migrations.head()


def test_the_migrated_schema_is_the_one_in_tables(url: str) -> None:
    migrations.upgrade(url)
    engine = connect(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
    command.check(migrations.config(url))


def broken_history(tmp_path: Path, statement: str) -> Config:
    """A copy of the package with one more migration: it makes a table, then does `statement`."""
    package = tmp_path / "history"
    shutil.copytree(Path(migrations.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "versions" / "9999_broken.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = '9999'\ndown_revision = '{migrations.head()}'\n"
        "def upgrade():\n"
        "    op.create_table('half_done', sa.Column('id', sa.Integer, primary_key=True))\n"
        f"    {statement}\n"
        "def downgrade():\n    pass\n"
    )
    config = Config(str(package / "alembic.ini"))
    config.set_main_option("script_location", str(package))
    return config


def test_a_failing_migration_leaves_the_old_schema(url: str, tmp_path: Path) -> None:
    migrations.upgrade(url)
    before = table_names(url)
    config = broken_history(tmp_path, "op.execute('INSERT INTO no_such_table VALUES (1)')")
    config.attributes["database_url"] = url
    with pytest.raises(Exception, match="no_such_table"):
        command.upgrade(config, "head")
    assert table_names(url) == before
    assert migrations.current(url) == migrations.head()


def test_remaking_a_table_on_sqlite_keeps_the_rows_that_refer_to_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    migrations.upgrade(url)
    engine = connect(url)
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO tenants VALUES ('a', 's', 1, 1)"))
        connection.execute(text("INSERT INTO webhooks VALUES ('w', 'a', 'https://x', 's', '[]', 1)"))
    config = broken_history(
        tmp_path,
        "b = op.batch_alter_table('tenants', recreate='always')\n"
        "    with b as t: t.alter_column('webhook_secret', type_=sa.String(200))",
    )
    config.attributes["database_url"] = url
    command.upgrade(config, "head")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM webhooks")).scalar_one() == 1
    engine.dispose()


def test_triggers_outlive_a_migration_that_remakes_their_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    migrations.upgrade(url)
    config = broken_history(
        tmp_path,
        "b = op.batch_alter_table('jobs', recreate='always')\n"
        "    with b as t: t.alter_column('kind', type_=sa.String(40))",
    )
    config.attributes["database_url"] = url
    command.upgrade(config, "head")
    engine = connect(url)
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'")
        assert connection.execute(query).scalar_one() == len(TRIGGERS)
    engine.dispose()


def test_jobs_of_before_are_tallied_once_and_outlive_the_way_back(url: str) -> None:
    migrations.upgrade(url, "0006")
    engine = connect(url)
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO tenants VALUES ('a', 's', 1)"))
        columns = "id, tenant, kind, spec, labels, gates, priority, queue, timeout_seconds, state, version"
        rest = "last_seq, attempt, lost_attempts, max_attempts, created_at, queued_at, publish_count"
        values = "'a', 'prune', '{}', '{}', '[]', 0, 'cpu', 1, 'failed', 1, 1, 1, 0, 3, 1, 1, 0"
        for number in range(3):
            connection.execute(text(f"INSERT INTO jobs ({columns}, {rest}) VALUES ('{number}', {values})"))
            attempt = f"INSERT INTO attempts VALUES ('{number}', 1, 'w', 'failed', 1000, 3000, NULL, NULL)"
            connection.execute(text(attempt))
    migrations.upgrade(url)
    tallied = text(
        "SELECT subject, state, sum(number), sum(milliseconds) FROM tallies"
        " GROUP BY subject, state HAVING sum(number) <> 0 ORDER BY subject, state"
    )
    with writing(engine) as connection:
        before = [tuple(row) for row in connection.execute(tallied)]
        connection.execute(text("UPDATE jobs SET state = 'queued' WHERE id = '0'"))
        after = [tuple(row) for row in connection.execute(tallied)]
    assert before == [("attempt", "failed", 3, 6000), ("job", "failed", 3, 0)]
    assert after == [("attempt", "failed", 3, 6000), ("job", "failed", 2, 0), ("job", "queued", 1, 0)]
    migrations.downgrade(url, "0006")
    with engine.connect() as connection:
        assert (
            connection.execute(text("SELECT count(*) FROM attempts JOIN jobs ON id = job_id")).scalar() == 3
        )
    engine.dispose()
