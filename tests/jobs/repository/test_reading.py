"""Lists and look-ups: complete, isolated by tenant, and as cheap on a full table as on a small one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert

from jobs import tables as t
from jobs.database import writing
from jobs.errors import InvalidError, NotFoundError
from jobs.ids import new_id
from jobs.repository import Repository
from jobs.rows import Job
from jobs.states import State
from tests.jobs.conftest import TENANT, some_id

Create = Callable[..., Job]


def walk(repository: Repository, limit: int = 2, **filters: Any) -> list[str]:
    """All ids of a list, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = repository.list_jobs(TENANT, limit=limit, cursor=cursor, **filters)
        assert len(page.items) <= limit
        found += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_pages_are_complete_newest_first_and_never_repeat(repository: Repository, create: Create) -> None:
    ids = [create().id for _ in range(7)]
    assert walk(repository, limit=2) == ids[::-1]
    assert walk(repository, limit=7) == ids[::-1]


def test_a_job_that_is_made_while_pages_are_turned_does_not_disturb_them(
    repository: Repository, create: Create
) -> None:
    ids = [create().id for _ in range(4)]
    page = repository.list_jobs(TENANT, limit=2)
    create()
    rest = repository.list_jobs(TENANT, limit=2, cursor=page.next_cursor)
    assert [job.id for job in (*page.items, *rest.items)] == ids[::-1]


def test_filters_can_be_combined(repository: Repository, create: Create) -> None:
    wanted = create(labels={"team": "nlp", "run": "1"})
    create(labels={"team": "nlp", "run": "2"})
    create(labels={"team": "cv", "run": "1"})
    running = create(labels={"team": "nlp", "run": "1"})
    repository.claim(running.id, "w")
    labels = {"team": "nlp", "run": "1"}
    assert walk(repository, labels=labels, state=State.QUEUED, kind="prune") == [wanted.id]
    assert walk(repository, labels=labels) == [running.id, wanted.id]
    assert walk(repository, labels=labels, limit=1) == [running.id, wanted.id]
    assert walk(repository, labels=labels, kind="bias") == []
    assert walk(repository, labels={"team": "NLP"}) == []


def test_created_after_is_exclusive(repository: Repository, create: Create, engine: Engine) -> None:
    jobs = [create() for _ in range(3)]
    with writing(engine) as connection:
        for number, job in enumerate(jobs):
            moved = (
                t.jobs.update().where(t.jobs.c.id == job.id).values(created_at=job.created_at + number * 10)
            )
            connection.execute(moved)
    middle = repository.get_job(jobs[1].id).created_at
    assert walk(repository, created_after=middle) == [jobs[2].id]
    assert walk(repository, created_after=middle - 1) == [jobs[2].id, jobs[1].id]


def test_another_tenants_jobs_do_not_exist(repository: Repository, create: Create) -> None:
    mine, theirs = create(), create(tenant="other", labels={"team": "nlp"})
    assert walk(repository) == [mine.id]
    assert walk(repository, labels={"team": "nlp"}) == []
    with pytest.raises(NotFoundError):
        repository.get_job(theirs.id, TENANT)
    assert repository.get_job(theirs.id, "other").id == theirs.id
    assert len(repository.list_jobs(None).items) == 2


def test_unknown_jobs_and_foreign_cursors_are_refused(repository: Repository) -> None:
    with pytest.raises(NotFoundError):
        repository.get_job(some_id())
    for cursor in ("", "1", "' OR 1=1", some_id()[:-1]):
        with pytest.raises(InvalidError, match="cursor"):
            repository.list_jobs(TENANT, cursor=cursor)


def test_versions_of_many_jobs_come_in_one_query(
    repository: Repository, create: Create, engine: Engine
) -> None:
    jobs = [create() for _ in range(5)]
    repository.cancel_job(jobs[0].id)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    versions = repository.versions([*(job.id for job in jobs), some_id()])
    assert len(statements) == 1
    assert set(versions) == {job.id for job in jobs}
    assert versions[jobs[0].id].terminal
    assert not versions[jobs[1].id].terminal
    assert versions[jobs[0].id].version > versions[jobs[1].id].version


def test_a_version_alone_is_the_jobs(repository: Repository, create: Create) -> None:
    job = create()
    assert repository.get_version(job.id, TENANT) == repository.versions([job.id])[job.id]
    for job_id, tenant in ((job.id, "other"), (some_id(), None)):
        with pytest.raises(NotFoundError):
            repository.get_version(job_id, tenant)


def test_counts(repository: Repository, create: Create, turn_back: Callable[..., None]) -> None:
    old, job = create(), create()
    turn_back(old, "queued_at", 100)
    assert repository.count_states() == {("queued", "prune"): 2}
    assert 100 <= repository.queue_age_seconds()["cpu"] < 200
    repository.claim(job.id, "w")
    assert repository.count_states() == {("queued", "prune"): 1, ("running", "prune"): 1}
    repository.cancel_job(old.id)
    assert repository.queue_age_seconds() == {}


def test_attempts_are_counted_by_outcome(
    repository: Repository, create: Create, turn_back: Callable[..., None], engine: Engine
) -> None:
    assert repository.attempt_totals() == {}
    for _ in range(2):
        job = create()
        repository.claim(job.id, "w")
    repository.mark_failed(job.id, 1, "x", "y")
    with writing(engine) as connection:
        moved = t.attempts.update().where(t.attempts.c.job_id == job.id)
        connection.execute(moved.values(started_at=1000, finished_at=3500))
    assert repository.attempt_totals() == {"running": (1, 0.0), "failed": (1, 2.5)}


def fill(engine: Engine, template: Job, count: int) -> None:
    """Many ended jobs with two labels each, straight into the tables."""
    with writing(engine) as connection:
        row = dict(connection.execute(t.jobs.select().where(t.jobs.c.id == template.id)).mappings().one())
        row |= {"state": "succeeded", "labels": '{"team":"nlp"}'}
        ids = [new_id() for _ in range(count)]
        connection.execute(insert(t.jobs), [{**row, "id": job_id} for job_id in ids])
        labels = [
            {"job_id": job_id, "key": key, "value": value, "tenant": TENANT}
            for job_id in ids
            for key, value in (("team", "nlp"), ("run", job_id))
        ]
        connection.execute(insert(t.job_labels), labels)


def sqlite_steps(repository: Repository, engine: Engine, call: Callable[[], object]) -> int:
    """How many steps of SQLite's virtual machine a call takes: a cost without a clock."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(count, 10)
        connection.close()  # the pool hands the same connection to the call
        call()
        driver.set_progress_handler(None, 0)
    return steps


QUESTIONS: dict[str, Callable[[Repository, str], object]] = {
    "by id": lambda r, i: r.get_job(i, TENANT),
    "first page": lambda r, i: r.list_jobs(TENANT, limit=50),
    "deep page": lambda r, i: r.list_jobs(TENANT, limit=50, cursor=i),
    "by state": lambda r, i: r.list_jobs(TENANT, state=State.SUCCEEDED, limit=50, cursor=i),
    "by kind": lambda r, i: r.list_jobs(TENANT, kind="prune", limit=50, cursor=i),
    "by label": lambda r, i: r.list_jobs(TENANT, labels={"team": "nlp"}, limit=50, cursor=i),
    "by a rare label": lambda r, i: r.list_jobs(TENANT, labels={"run": i}, limit=50),
    "by a state that is rare": lambda r, i: r.list_jobs(TENANT, state=State.FAILED, limit=50),
    "by a verdict that is rare": lambda r, i: r.list_jobs(TENANT, verdict="fail", limit=50),
    "by a verdict": lambda r, i: r.list_jobs(TENANT, verdict="none", limit=50, cursor=i),
    "by the presence of a label": lambda r, i: r.list_jobs(TENANT, labels={"team": None}, limit=50, cursor=i),
    "by the presence of a rare label": lambda r, i: r.list_jobs(TENANT, labels={"x": None}, limit=50),
    "by the beginning of an id": lambda r, i: r.list_jobs(TENANT, id_prefix=i, limit=50),
    "older than all": lambda r, i: r.list_jobs(TENANT, created_before=1000, limit=50),
    "newer than all": lambda r, i: r.list_jobs(TENANT, created_after=2**45, limit=50),
    "the sweep": lambda r, i: r.sweep_expired(),
    "the outbox": lambda r, i: r.take_outbox(),
    "the retention": lambda r, i: r.take_expired_artifacts(),
}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_full_table_costs_no_more_than_a_small_one(
    repository: Repository, engine: Engine, create: Create
) -> None:
    template = create()
    repository.cancel_job(template.id)
    fill(engine, template, 300)
    middle = repository.list_jobs(TENANT, limit=100).items[-1].id

    def steps() -> dict[str, int]:
        return {
            name: sqlite_steps(repository, engine, partial(ask, repository, middle))
            for name, ask in QUESTIONS.items()
        }

    steps()  # some questions leave less to do than they found
    small = steps()
    fill(engine, template, 2500)
    large = steps()
    assert all(small.values())
    dear = {name: (small[name], large[name]) for name in small if large[name] > small[name] * 1.2 + 5}
    assert not dear
