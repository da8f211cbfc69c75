"""The repository on both engines: every test that takes `repository` runs on SQLite and on Postgres."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

import migrations
from jobs.database import connect, writing
from jobs.ids import new_id
from jobs.repository import Repository
from jobs.rows import Job
from jobs.settings import Settings
from jobs.specs import AnyRequest, parse_request
from jobs.tables import jobs as jobs_table, metadata
from tests.servers import Postgres, postgres_server

TENANT = "acme"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        migrations.upgrade(server.url)
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "service.db")
        engine = connect(f"sqlite:///{tmp_path / 'service.db'}")
    else:
        engine = connect(request.getfixturevalue("postgres").url)
        names = ", ".join(table.name for table in metadata.sorted_tables)
        with writing(engine) as connection:
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    yield engine
    engine.dispose()


@pytest.fixture
def repository(engine: Engine, settings: Settings) -> Repository:
    repository = Repository(engine, settings)
    repository.ensure_tenant(TENANT)
    return repository


def prune_request(**fields: Any) -> AnyRequest:
    """A small prune request; `spec` is merged, the other fields are the request's (gates want a text)."""
    spec: dict[str, Any] = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 20}
    if fields.get("gates"):
        spec["evaluation"] = {"texts": ["Some text to measure on."]}
    spec |= fields.pop("spec", {})
    return parse_request({"kind": "prune", "spec": spec, **fields})


@pytest.fixture
def create(repository: Repository) -> Callable[..., Job]:
    """Make a queued job."""

    def make(tenant: str = TENANT, **fields: Any) -> Job:
        repository.ensure_tenant(tenant)
        return repository.create_job(tenant, prune_request(**fields), queue="cpu")

    return make


@pytest.fixture
def turn_back(engine: Engine) -> Callable[..., None]:
    """Let time pass for one job: move one of its time columns back by so many seconds."""

    def move(job: Job, column: str, seconds: float) -> None:
        moved = jobs_table.c[column] - round(seconds * 1000)
        with writing(engine) as connection:
            connection.execute(update(jobs_table).where(jobs_table.c.id == job.id).values({column: moved}))

    return move


def some_id() -> str:
    """The id of a job that does not exist."""
    return new_id()
