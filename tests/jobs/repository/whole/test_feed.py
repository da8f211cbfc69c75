"""The feed of changes: all of them, once at least, on both engines and whatever commits in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text, update

from jobs.database import writing
from jobs.repository import Repository
from jobs.rows import Job, Version
from jobs.tables import changes, jobs

Create = Callable[..., Job]


def test_what_changed_since_is_told_and_nothing_else(repository: Repository, create: Create) -> None:
    create()
    quiet, moved = create(), create()
    start = repository.changes_since(None)
    assert start.versions == {}
    repository.claim(moved.id, "w")
    news = repository.changes_since(start.horizon)
    assert set(news.versions) - {quiet.id} == {moved.id}
    assert news.versions[moved.id] == repository.versions([moved.id])[moved.id]
    assert news.horizon >= start.horizon


def test_a_beat_is_no_news(repository: Repository, create: Create) -> None:
    job = create()
    repository.claim(job.id, "w")
    before = repository.changes_since(repository.changes_since(None).horizon)
    repository.heartbeat(job.id, 1)
    assert repository.changes_since(before.horizon).versions.get(job.id) == before.versions.get(job.id)


def test_the_newest_of_several_changes_is_told(repository: Repository, create: Create) -> None:
    job = create()
    start = repository.changes_since(None)
    repository.claim(job.id, "w")
    for _ in range(3):
        repository.add_event(job.id, 1, "note", {})
    assert repository.changes_since(start.horizon).versions[job.id] == Version(5, 5, False)


def test_a_deleted_job_is_told_as_gone(repository: Repository, create: Create) -> None:
    job = create()
    start = repository.changes_since(None)
    repository.cancel_job(job.id)
    repository.delete_job(job.id)
    assert repository.changes_since(start.horizon).versions == {job.id: None}


def test_old_changes_are_forgotten_and_the_place_in_the_feed_stays(
    repository: Repository, create: Create, engine: Engine
) -> None:
    job = create()
    repository.claim(job.id, "w")
    assert repository.forget_changes() == 0
    with writing(engine) as connection:
        connection.execute(update(changes).values(noted_at=changes.c.noted_at - 10**6))
    place = repository.changes_since(None).horizon
    assert repository.forget_changes() == 1
    assert repository.forget_changes() == 0
    repository.add_event(job.id, 1, "note", {})
    assert set(repository.changes_since(place).versions) == {job.id}


@pytest.mark.server
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_what_commits_late_is_not_missed(repository: Repository, create: Create, engine: Engine) -> None:
    slow, quick = create(), create()
    place = repository.changes_since(None).horizon
    with writing(engine) as connection:
        connection.execute(update(jobs).where(jobs.c.id == slow.id).values(version=jobs.c.version + 1))
        repository.claim(quick.id, "w")  # begins later and commits first
        news = repository.changes_since(place)
        assert set(news.versions) == {quick.id}
    assert slow.id in repository.changes_since(news.horizon).versions


@pytest.mark.server
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_more_jobs_than_a_statement_takes_values(repository: Repository, create: Create) -> None:
    job = create()
    many = [*(f"{number:036d}" for number in range(66_000)), job.id]
    assert set(repository.versions(many)) == {job.id}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # Postgres reads a small table as a whole
def test_the_feed_is_read_by_an_index(repository: Repository, engine: Engine) -> None:
    with engine.connect() as connection:
        plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT * FROM changes WHERE id >= 5")).all()
    assert "SEARCH changes USING INTEGER PRIMARY KEY" in plan[0][3]
