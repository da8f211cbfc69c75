"""The outbox and the sweeper: nothing that was accepted is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, update

from jobs.database import writing
from jobs.repository import Repository
from jobs.rows import Artifact, Job
from jobs.states import State
from jobs.tables import outbox
from tests.jobs.conftest import prune_request

Create = Callable[..., Job]
TurnBack = Callable[..., None]


def publish_all(repository: Repository) -> list[str]:
    entries = repository.take_outbox()
    repository.mark_published(entries)
    return [entry.job_id for entry in entries]


def test_a_message_is_reserved_then_gone(repository: Repository, create: Create) -> None:
    job = create()
    assert repository.outbox_waiting()
    entries = repository.take_outbox()
    assert [entry.job_id for entry in entries] == [job.id]
    assert not repository.outbox_waiting()
    assert repository.take_outbox() == []
    repository.mark_published(entries)
    repository.mark_published(entries)
    assert repository.take_outbox() == []


def test_a_message_whose_dispatcher_died_comes_up_again(
    repository: Repository, create: Create, engine: Engine
) -> None:
    job = create()
    repository.take_outbox()
    with writing(engine) as connection:
        connection.execute(update(outbox).values(taken_until=1))
    assert publish_all(repository) == [job.id]


def test_urgent_messages_go_first(repository: Repository, create: Create) -> None:
    normal, low, high = create(), create(priority=-10), create(priority=10)
    assert publish_all(repository) == [high.id, normal.id, low.id]


def test_many_dispatchers_take_each_message_once(repository: Repository, create: Create) -> None:
    ids = {create().id for _ in range(12)}
    taken: list[str] = []

    def dispatch() -> None:
        for _ in range(6):
            taken.extend(entry.job_id for entry in repository.take_outbox(limit=2))

    threads = [threading.Thread(target=dispatch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.extend(entry.job_id for entry in repository.take_outbox())
    assert sorted(taken) == sorted(ids)


def test_a_message_that_the_broker_lost_is_published_again_ever_more_rarely(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    job = create()
    publish_all(repository)
    repository.sweep_expired()
    assert publish_all(repository) == []
    turn_back(job, "published_at", 31)
    repository.sweep_expired()
    assert publish_all(repository) == [job.id]
    turn_back(job, "published_at", 31)
    repository.sweep_expired()
    assert publish_all(repository) == []
    turn_back(job, "published_at", 31)
    repository.sweep_expired()
    repository.sweep_expired()
    assert publish_all(repository) == [job.id]


def test_a_claimed_job_needs_no_message(repository: Repository, create: Create, turn_back: TurnBack) -> None:
    job = create()
    publish_all(repository)
    repository.claim(job.id, "w")
    turn_back(job, "published_at", 3600)
    repository.sweep_expired()
    assert publish_all(repository) == []


def test_a_job_that_waited_too_long_expires(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    patient, hasty = create(), create(queue_timeout_seconds=60)
    turn_back(hasty, "queue_deadline", 61)
    assert repository.claim(hasty.id, "w") is None  # late already, though nobody has swept
    assert [job.id for job in repository.sweep_expired()] == [hasty.id]
    ended = repository.get_job(hasty.id)
    assert ended.state is State.EXPIRED
    assert ended.error is not None
    assert ended.error.code == "queue_timeout"
    assert repository.get_job(patient.id).state is State.QUEUED
    assert repository.list_attempts(hasty.id) == []


@pytest.mark.parametrize("how", ["lost", "preempted"])
def test_a_job_that_was_started_in_time_does_not_expire_when_it_waits_again(
    repository: Repository, create: Create, turn_back: TurnBack, how: str
) -> None:
    job = create(queue_timeout_seconds=60)
    repository.claim(job.id, "w")
    if how == "lost":
        repository.mark_lost(job.id, 1, "engine_killed", "signal 9")
    else:
        repository.release_preempted(job.id, 1)
    turn_back(job, "queue_deadline", 61)
    assert repository.sweep_expired() == []
    assert repository.claim(job.id, "w") is not None


def test_retention_removes_files_but_not_the_job(
    repository: Repository, turn_back: TurnBack, create: Create
) -> None:
    jobs = [create(), create()]
    for job in jobs:
        repository.claim(job.id, "w")
        item = Artifact("a", "text/plain", 1, "ab" * 32, f"{job.id}/1")
        repository.mark_succeeded(job.id, 1, artifacts=[item], archive=None, metrics={}, publish=lambda: None)
    assert repository.take_expired_artifacts() == []
    turn_back(jobs[0], "artifacts_expire_at", 10 * 365 * 24 * 3600)
    assert repository.take_expired_artifacts() == [f"{jobs[0].id}/1"]
    assert repository.take_expired_artifacts() == []
    assert repository.list_artifacts(jobs[0].id) == []
    assert repository.get_job(jobs[0].id).state is State.SUCCEEDED
    assert len(repository.list_artifacts(jobs[1].id)) == 1


def test_live_storage_is_what_is_published_or_held(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    held, lost, done = create(), create(), create()
    for job in (held, lost, done):
        repository.claim(job.id, "w")
    turn_back(lost, "lease_expires_at", 3600)
    repository.sweep_expired()
    item = Artifact("a", "text/plain", 1, "ab" * 32, f"{done.id}/1")
    repository.mark_succeeded(done.id, 1, artifacts=[item], archive=None, metrics={}, publish=lambda: None)
    asked = [(held.id, 1), (held.id, 2), (lost.id, 1), (done.id, 1), (done.id, 7)]
    assert repository.live_storage(asked) == {(held.id, 1), (done.id, 1)}
    assert repository.live_storage([]) == set()


def test_the_request_of_the_sweep_is_bounded(repository: Repository, turn_back: TurnBack) -> None:
    for _ in range(3):
        job = repository.create_job("acme", prune_request(queue_timeout_seconds=5), queue="cpu")
        turn_back(job, "queue_deadline", 60)
    assert len(repository.sweep_expired(limit=2)) == 2
    assert len(repository.sweep_expired(limit=2)) == 1


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_sweep_of_a_healthy_service_writes_nothing(
    repository: Repository, create: Create, state: str
) -> None:
    job = create()
    publish_all(repository)
    if state == "running":
        repository.claim(job.id, "w")
    before = repository.get_job(job.id)
    assert repository.sweep_expired() == []
    assert repository.get_job(job.id) == before
