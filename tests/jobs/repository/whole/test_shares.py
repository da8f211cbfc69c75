"""Whose turn it is: tenants by what they run and used, and only within a tenant by priority and age."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, update

from jobs.database import writing
from jobs.errors import NotFoundError
from jobs.repository import Repository
from jobs.repository.whole import shares
from jobs.repository.whole.shares import Share
from jobs.rows import Job
from jobs.tables import attempts

Create = Callable[..., Job]


@pytest.fixture(autouse=True)
def see_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are as of now, not of the last second."""
    monkeypatch.setattr(shares, "STANDING_SECONDS", -1.0)


def names(repository: Repository, limit: int = 20) -> list[str]:
    """The tenants whose jobs would start, in order."""
    return [repository.get_job(job_id).tenant for job_id in repository.next_jobs("cpu", limit=limit)]


def start(repository: Repository) -> Job:
    """Start the job whose turn it is."""
    claim = repository.claim(repository.next_jobs("cpu", limit=1)[0], "w")
    assert claim is not None
    return claim.job


def test_a_tenants_jobs_start_by_priority_then_age(repository: Repository, create: Create) -> None:
    old, urgent, late, new = (create(priority=number).id for number in (0, 7, -3, 0))
    assert repository.next_jobs("cpu") == [urgent, old, new, late]
    assert repository.next_jobs("cpu", limit=2) == [urgent, old]
    assert repository.next_jobs("gpu") == []


def test_priority_does_not_reach_across_tenants(repository: Repository, create: Create) -> None:
    for _ in range(3):
        create("crowd", priority=100)
    create("alone")
    assert names(repository) == ["alone", "crowd", "crowd", "crowd"]


def test_the_first_job_of_a_tenant_waits_for_no_more_ends_than_there_are_workers(
    repository: Repository, create: Create
) -> None:
    for _ in range(40):
        create("crowd")
    workers = [start(repository) for _ in range(3)]
    alone = create("alone")
    ended = 0
    while repository.get_job(alone.id).state == "queued":
        running = workers.pop(0)
        repository.mark_failed(running.id, 1, "x", "x")
        ended += 1
        workers.append(start(repository))
    assert ended <= 3


def test_who_used_less_in_the_last_hour_goes_first(
    repository: Repository, create: Create, engine: Engine
) -> None:
    for tenant, minutes_ago, minutes in [("a", 10, 9), ("b", 500, 480), ("c", 50, 20), ("d", 90, 35)]:
        job = create(tenant)
        repository.claim(job.id, "w")
        repository.mark_failed(job.id, 1, "x", "x")
        begun = repository.now() - minutes_ago * 60_000
        times = {"started_at": begun, "finished_at": begun + minutes * 60_000}
        with writing(engine) as connection:
            connection.execute(update(attempts).where(attempts.c.job_id == job.id).values(times))
        create(tenant)
    # of b's eight hours 40 minutes lie within this one, of d's 35 minutes 5
    assert names(repository) == ["d", "a", "c", "b"]
    used = {share.tenant: round(share.seconds / 60) for share in repository.list_tenants()}
    assert [used[tenant] for tenant in "abcd"] == [9, 40, 20, 5]


def test_a_weight_counts_against_both(repository: Repository, create: Create) -> None:
    for _ in range(8):
        create("heavy")
        create("light")
    repository.set_weight("heavy", 3.0)
    for _ in range(8):
        start(repository)
    running = {share.tenant: share.running for share in repository.list_tenants()}
    assert (running["heavy"], running["light"]) == (6, 2)
    with pytest.raises(NotFoundError):
        repository.set_weight("nobody", 2.0)


def test_the_position_is_the_place_in_the_order(
    repository: Repository, create: Create, engine: Engine
) -> None:
    chance = random.Random(3)
    for _ in range(24):
        create(chance.choice(["a", "b", "c"]), priority=chance.choice([0, 0, 5]))
    repository.set_weight("b", 2.5)
    started, now = [start(repository) for _ in range(4)], repository.now()
    with writing(engine) as connection:  # so far apart that no turn changes while this test runs
        for job in started:
            begun = now - 60_000 * {"a": 10, "b": 20, "c": 40}[job.tenant]
            mine = update(attempts).where(attempts.c.job_id == job.id)
            connection.execute(mine.values(started_at=begun))
    order = repository.next_jobs("cpu", limit=100)
    assert len(order) == 20
    positions = [repository.queue_position(repository.get_job(job_id)) for job_id in order]
    assert positions == list(range(20))
    running = repository.list_jobs(None, limit=100).items
    assert {repository.queue_position(job) for job in running if job.state != "queued"} == {None}


def test_the_only_tenant_in_a_queue_has_positions_too(repository: Repository, create: Create) -> None:
    jobs = [create() for _ in range(3)]
    assert [repository.queue_position(job) for job in jobs] == [0, 1, 2]


def test_a_turn_of_equals_is_decided_by_name() -> None:
    assert Share("a").turn() < Share("b").turn()
    assert Share("b", weight=4.0, running=2).turn() < Share("a", running=1).turn()
    assert Share("b", seconds=1.0).turn() < Share("a", seconds=2.0).turn()


def test_far_behind_the_position_is_not_known(
    repository: Repository, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "MOST_AHEAD", 2)
    jobs = [create() for _ in range(4)]
    assert [repository.queue_position(job) for job in jobs] == [0, 1, 2, None]
