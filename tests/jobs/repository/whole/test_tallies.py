"""The tallies equal a count, whatever happened and whoever folds them meanwhile; else they are put right."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, insert, select, update

from jobs.database import writing
from jobs.errors import JobsError, QuotaExceededError
from jobs.repository import Repository
from jobs.repository.whole import tallies
from jobs.rows import Job
from jobs.settings import Settings
from jobs.specs import parse_request
from jobs.tables import attempts, jobs, tallies as tallies_table
from tests.jobs.conftest import prune_request

Create = Callable[..., Job]
TENANTS = ("acme", "other")


def counted(engine: Engine, tenant: str | None = None) -> tuple[Any, ...]:
    """What the tallies shall say, by counting."""
    mine = [] if tenant is None else [jobs.c.tenant == tenant]
    took = func.coalesce(func.sum(attempts.c.finished_at - attempts.c.started_at), 0)
    waiting = select(jobs.c.queue, func.count()).where(jobs.c.state == "queued", *mine).group_by(jobs.c.queue)
    states = select(jobs.c.state, jobs.c.kind, func.count()).where(*mine).group_by(jobs.c.state, jobs.c.kind)
    outcomes = (
        select(attempts.c.outcome, func.count(), took)
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(*mine)
        .group_by(attempts.c.outcome)
    )
    with engine.connect() as connection:
        return (
            {(row[0], row[1]): row[2] for row in connection.execute(states)},
            {row[0]: row[1] for row in connection.execute(waiting)},
            {row[0]: (row[1], float(row[2]) / 1000) for row in connection.execute(outcomes)},
        )


def told(repository: Repository, tenant: str | None = None) -> tuple[Any, ...]:
    """What the tallies say."""
    return (
        repository.count_states(tenant),
        repository.queue_lengths(tenant),
        repository.attempt_totals(tenant),
    )


def some_request(chance: random.Random) -> Any:
    """A prune or an analysis."""
    if chance.random() < 0.5:
        return prune_request()
    return parse_request({"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}})


def disturb(repository: Repository, chance: random.Random, made: list[str]) -> None:
    """One verb at random upon one job at random, whether or not it is allowed to it."""
    if not made or chance.random() < 0.2:
        tenant, queue = chance.choice(TENANTS), chance.choice(["cpu", "short"])
        made.append(repository.create_job(tenant, some_request(chance), queue=queue).id)
        return
    job = chance.choice(made)
    attempt = chance.randint(1, 3)
    verbs: list[Callable[[], Any]] = [
        lambda: repository.claim(job, "w"),
        lambda: repository.mark_failed(job, attempt, "x", "x"),
        lambda: repository.mark_timed_out(job, attempt, "x"),
        lambda: repository.mark_lost(job, attempt, "x", "x"),
        lambda: repository.release_preempted(job, attempt),
        lambda: repository.mark_cancelled(job, attempt),
        lambda: repository.mark_succeeded(
            job, attempt, artifacts=[], archive=None, metrics={}, publish=lambda: None
        ),
        lambda: repository.add_event(job, attempt, "note", {}),
        lambda: repository.cancel_job(job),
        lambda: repository.retry_job(job),
        lambda: repository.delete_job(job),
    ]
    chance.choice(verbs)()


@pytest.fixture
def fold_eagerly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fold whatever there is."""
    monkeypatch.setattr(tallies, "_FOLD_AT", -(10**6))
    yield


def test_they_equal_a_count_after_any_sequence_of_transitions(
    repository: Repository, engine: Engine, fold_eagerly: None
) -> None:
    chance, made = random.Random(25), list[str]()
    repository.ensure_tenant("other")
    for step in range(160):
        with suppress(JobsError):  # this verb was not allowed: nothing may have changed
            disturb(repository, chance, made)
        if step % 80 == 79:
            repository.fold_tallies()
            for tenant in (None, *TENANTS):
                assert told(repository, tenant) == counted(engine, tenant)
    assert repository.reconcile_tallies() == 0
    assert len(repository.count_states()) > 5  # the sequence has been to most states


@pytest.mark.server
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_they_equal_a_count_after_many_at_once(
    repository: Repository, engine: Engine, fold_eagerly: None
) -> None:
    repository.ensure_tenant("other")

    def run(seed: int) -> None:
        chance, made = random.Random(seed), list[str]()
        for step in range(30):
            with suppress(JobsError):
                disturb(repository, chance, made)
            if step % 10 == 0:
                assert repository.reconcile_tallies() == 0

    def fold(_: int) -> None:
        for _ in range(20):
            repository.fold_tallies()

    with ThreadPoolExecutor(4) as threads:
        work = [*(threads.submit(run, seed) for seed in range(3)), threads.submit(fold, 0)]
        for item in work:
            item.result()
    assert told(repository) == counted(engine)


def test_folding_leaves_a_row_for_each_figure(
    repository: Repository, create: Create, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "_FOLD_AT", 8)
    for _ in range(12):
        repository.cancel_job(create().id)
    before = told(repository)
    assert repository.fold_tallies() == 12 * 3 - 1  # made, left the queue, cancelled; none waits any more
    assert told(repository) == before
    assert repository.fold_tallies() == 0
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(tallies_table)).scalar_one() == 1


def test_what_is_wrong_is_put_right(repository: Repository, create: Create, engine: Engine) -> None:
    for _ in range(3):
        repository.claim(create().id, "w")
    with writing(engine) as connection:
        connection.execute(delete(tallies_table).where(tallies_table.c.state == "running"))
        lie = {"subject": "job", "tenant": "ghost", "queue": "cpu", "kind": "prune", "state": "failed"}
        connection.execute(insert(tallies_table).values(**lie, number=7))
    assert told(repository) != counted(engine)
    assert repository.reconcile_tallies() == 3  # jobs that run, their attempts, and the ghosts
    assert told(repository) == counted(engine)
    assert repository.reconcile_tallies() == 0


def test_quotas_and_the_queue_use_them(
    engine: Engine, settings: Settings, create: Create, repository: Repository
) -> None:
    create()
    narrow = Repository(engine, settings.model_copy(update={"max_jobs_per_tenant": 2}))
    narrow.create_job("acme", prune_request(), queue="cpu")
    with pytest.raises(QuotaExceededError):
        narrow.create_job("acme", prune_request(), queue="cpu")
    assert repository.queue_lengths() == {"cpu": 2}  # what was refused has left no trace


def test_the_oldest_of_each_queue_is_found(
    repository: Repository, create: Create, turn_back: Callable[..., None]
) -> None:
    oldest = create()
    create()
    turn_back(oldest, "queued_at", 90)
    assert 90 <= repository.queue_age_seconds()["cpu"] < 200
    assert repository.queue_age_seconds("other") == {}


def test_a_write_that_no_verb_knows_is_tallied_too(
    repository: Repository, create: Create, engine: Engine
) -> None:
    job = create()
    with writing(engine) as connection:  # as a worker of another release might write it
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(state="expired"))
    assert repository.count_states() == {("expired", "prune"): 1}
