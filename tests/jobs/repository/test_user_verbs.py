"""Cancel, retry, delete: what a user may do in which state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from sqlalchemy import Engine

from jobs.errors import ConflictError, NotFoundError, QueueFullError, QuotaExceededError
from jobs.repository import Repository
from jobs.rows import Job
from jobs.settings import Settings
from jobs.states import RETRYABLE, TERMINAL, TRANSITIONS, State
from tests.jobs.conftest import prune_request, some_id

Create = Callable[..., Job]


def bring_to(repository: Repository, job: Job, state: State, turn_back: Callable[..., None]) -> None:
    """Take a job's way to a state by the verbs alone."""
    if state in (State.QUEUED, State.EXPIRED):
        if state is State.EXPIRED:
            turn_back(job, "queued_at", 3600)
            turn_back(job, "queue_deadline", 3600)
            repository.sweep_expired()
    elif state is State.CANCELLED:
        repository.cancel_job(job.id)
    else:
        repository.claim(job.id, "w")
        match state:
            case State.CANCELLING:
                repository.cancel_job(job.id)
            case State.SUCCEEDED:
                repository.mark_succeeded(
                    job.id, 1, artifacts=[], archive=None, metrics={}, publish=lambda: None
                )
            case State.FAILED:
                repository.mark_failed(job.id, 1, "x", "y")
            case State.TIMED_OUT:
                repository.mark_timed_out(job.id, 1, "y")
    assert repository.get_job(job.id).state is state


@pytest.fixture
def job_in(repository: Repository, create: Create, turn_back: Callable[..., None]) -> Callable[[State], Job]:
    def make(state: State) -> Job:
        job = create(queue_timeout_seconds=60)
        bring_to(repository, job, state, turn_back)
        return repository.get_job(job.id)

    return make


@pytest.mark.parametrize("state", list(State))
def test_cancel(repository: Repository, job_in: Callable[[State], Job], state: State) -> None:
    job = job_in(state)
    if state in TERMINAL - {State.CANCELLED}:
        with pytest.raises(ConflictError):
            repository.cancel_job(job.id)
        assert repository.get_job(job.id) == job
        return
    expected = State.CANCELLED if state in (State.QUEUED, State.CANCELLED) else State.CANCELLING
    assert repository.cancel_job(job.id).state is expected
    version = repository.get_job(job.id).version
    assert repository.cancel_job(job.id).version == version  # a repeat changes nothing
    assert repository.take_outbox() == []


@pytest.mark.parametrize("state", list(State))
def test_retry(repository: Repository, job_in: Callable[[State], Job], state: State) -> None:
    job = job_in(state)
    if state not in RETRYABLE:
        with pytest.raises(ConflictError):
            repository.retry_job(job.id)
        assert repository.get_job(job.id) == job
        return
    repository.take_outbox()
    again = repository.retry_job(job.id)
    assert (again.state, again.lost_attempts, again.error, again.finished_at) == (State.QUEUED, 0, None, None)
    assert again.attempt == job.attempt
    assert len(repository.take_outbox()) == 1
    with pytest.raises(ConflictError):
        repository.retry_job(job.id)
    claim = repository.claim(job.id, "w")
    assert claim is not None
    assert claim.attempt == job.attempt + 1


def test_a_retried_job_waits_no_longer_than_a_new_one(
    repository: Repository, create: Create, turn_back: Callable[..., None]
) -> None:
    job = create(queue_timeout_seconds=60)
    for _ in range(2):
        bring_to(repository, job, State.EXPIRED, turn_back)
        job = repository.retry_job(job.id)
        assert job.queue_deadline == job.queued_at + 60_000
    repository.claim(job.id, "w")
    repository.mark_failed(job.id, job.attempt + 1, "engine_failed", "it broke")
    again = repository.retry_job(job.id)
    assert again.queue_deadline == again.queued_at + 60_000
    unlimited = create()
    repository.cancel_job(unlimited.id)
    assert repository.retry_job(unlimited.id).queue_deadline is None


def test_a_retry_counts_against_the_quota_and_the_queues_depth(engine: Engine, settings: Settings) -> None:
    for limits, refusal in (
        ({"max_jobs_per_tenant": 1}, QuotaExceededError),
        ({"max_queue_depth": 1}, QueueFullError),
    ):
        tight = Repository(engine, settings.model_copy(update=limits))
        tight.ensure_tenant("a")
        first = tight.create_job("a", prune_request(), queue="cpu")
        tight.cancel_job(first.id)
        second = tight.create_job("a", prune_request(), queue="cpu")
        with pytest.raises(refusal):
            tight.retry_job(first.id)
        assert tight.get_job(first.id).state is State.CANCELLED
        tight.cancel_job(second.id)
        assert tight.retry_job(first.id).state is State.QUEUED
        tight.cancel_job(first.id)


@pytest.mark.parametrize("state", list(State))
def test_delete(repository: Repository, job_in: Callable[[State], Job], state: State) -> None:
    job = job_in(state)
    if state not in TERMINAL:
        with pytest.raises(ConflictError):
            repository.delete_job(job.id)
        return
    repository.delete_job(job.id)
    with pytest.raises(NotFoundError):
        repository.get_job(job.id)
    assert repository.list_events(job.id) == []
    assert repository.list_attempts(job.id) == []
    with pytest.raises(NotFoundError):
        repository.delete_job(job.id)


def test_what_does_not_exist_cannot_be_changed(repository: Repository) -> None:
    for verb in (repository.cancel_job, repository.retry_job, repository.delete_job):
        with pytest.raises(NotFoundError):
            verb(some_id())


def test_the_table_of_transitions_is_what_the_verbs_do(
    repository: Repository, job_in: Callable[[State], Job], turn_back: Callable[..., None]
) -> None:
    def expire(job: Job) -> None:
        turn_back(job, "queue_deadline", 3600)
        repository.sweep_expired()

    verbs: list[Callable[[Job], object]] = [
        lambda job: repository.claim(job.id, "w"),
        lambda job: repository.mark_succeeded(
            job.id, 1, artifacts=[], archive=None, metrics={}, publish=lambda: None
        ),
        lambda job: repository.mark_failed(job.id, 1, "x", "y"),
        lambda job: repository.mark_timed_out(job.id, 1, "y"),
        lambda job: repository.mark_cancelled(job.id, 1),
        lambda job: repository.mark_lost(job.id, 1, "x", "y"),
        lambda job: repository.release_preempted(job.id, 1),
        lambda job: repository.cancel_job(job.id),
        lambda job: repository.retry_job(job.id),
        expire,
    ]
    seen: dict[State, set[State]] = {state: set() for state in State}
    for state in State:
        for verb in verbs:
            job = job_in(state)
            with suppress(ConflictError):
                verb(job)
            seen[state].add(repository.get_job(job.id).state)
    reused = {State.QUEUED: {State.SUCCEEDED}}
    assert {state: seen[state] - {state} | reused.get(state, set()) for state in State} == TRANSITIONS
    assert {state for state in State if not TRANSITIONS[state] - {State.QUEUED}} == TERMINAL
