"""Claims, leases and ends: what an attempt writes counts only while it holds the job."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from jobs.repository import Repository
from jobs.rows import Artifact, Job, Progress
from jobs.states import Outcome, State
from tests.jobs.conftest import some_id

Create = Callable[..., Job]
TurnBack = Callable[..., None]


def artifact(job: Job, attempt: int, name: str = "model.safetensors") -> Artifact:
    return Artifact(name, "application/octet-stream", 3, "ab" * 32, f"{job.id}/{attempt}")


def succeed(
    repository: Repository, job: Job, attempt: int, published: list[int] | None = None
) -> State | None:
    return repository.mark_succeeded(
        job.id,
        attempt,
        artifacts=[artifact(job, attempt)],
        archive=Artifact("*", "application/x-tar", 9, "cd" * 32, f"{job.id}/{attempt}"),
        metrics={"seconds": 1.5},
        publish=lambda: (published if published is not None else []).append(attempt),
    )


def lose_lease(repository: Repository, turn_back: TurnBack, job: Job) -> list[Job]:
    turn_back(job, "lease_expires_at", 3600)
    return repository.sweep_expired()


def types(repository: Repository, job: Job) -> list[str]:
    return [event.type for event in repository.list_events(job.id)]


def test_a_job_goes_from_creation_to_success(repository: Repository, create: Create) -> None:
    job = create()
    assert job.state is State.QUEUED
    claim = repository.claim(job.id, "w1")
    assert claim is not None
    assert claim.attempt == 1
    assert claim.job.started_at is not None
    assert repository.heartbeat(job.id, 1) is State.RUNNING
    assert repository.add_event(
        job.id, 1, "progress", {"layer": 3}, progress=Progress(0.5, "prune", "layer 3", 2.0)
    )
    assert repository.get_job(job.id).progress == Progress(0.5, "prune", "layer 3", 2.0)
    published: list[int] = []
    assert succeed(repository, job, 1, published) is State.SUCCEEDED
    ended = repository.get_job(job.id)
    assert (ended.state, ended.terminal, ended.verdict, published) == (State.SUCCEEDED, True, "none", [1])
    assert ended.finished_at is not None
    assert ended.artifacts_expire_at is not None
    assert [item.name for item in repository.list_artifacts(job.id)] == ["model.safetensors"]
    assert repository.get_artifact(job.id, "*").size == 9  # type: ignore[union-attr]
    assert repository.get_metrics(job.id) == {"seconds": 1.5}
    assert types(repository, job) == ["queued", "started", "progress", "succeeded"]
    assert [a.outcome for a in repository.list_attempts(job.id)] == [Outcome.SUCCEEDED]


def test_the_time_left_is_told_anew_without_an_event_and_by_no_stale_attempt(
    repository: Repository, create: Create
) -> None:
    job = create()
    repository.claim(job.id, "w1")
    before = repository.get_job(job.id)
    assert repository.tell_eta(job.id, 1, 12.5)
    told = repository.get_job(job.id)
    assert (told.progress.eta_seconds, told.version) == (12.5, before.version + 1)
    assert told.last_seq == before.last_seq
    assert not repository.tell_eta(job.id, 2, 1.0)
    assert succeed(repository, job, 1) is State.SUCCEEDED
    assert not repository.tell_eta(job.id, 1, 1.0)
    assert repository.get_job(job.id).progress.eta_seconds == 0.0


def test_events_are_numbered_without_gaps_and_versions_rise(repository: Repository, create: Create) -> None:
    job = create()
    versions = [repository.get_job(job.id).version]
    repository.claim(job.id, "w1")
    versions.append(repository.get_job(job.id).version)
    for layer in range(3):
        repository.add_event(job.id, 1, "progress", {"layer": layer})
        versions.append(repository.get_job(job.id).version)
    assert [event.seq for event in repository.list_events(job.id)] == [1, 2, 3, 4, 5]
    assert [event.seq for event in repository.list_events(job.id, after=3)] == [4, 5]
    assert versions == sorted(set(versions))


def test_a_heartbeat_does_not_change_the_version(repository: Repository, create: Create) -> None:
    job = create()
    repository.claim(job.id, "w1")
    before = repository.get_job(job.id)
    repository.heartbeat(job.id, 1)
    after = repository.get_job(job.id)
    assert after.version == before.version
    assert after.lease_expires_at is not None
    assert before.lease_expires_at is not None
    assert after.lease_expires_at >= before.lease_expires_at


def test_the_second_claim_gets_nothing(repository: Repository, create: Create) -> None:
    job = create()
    assert repository.claim(job.id, "w1") is not None
    assert repository.claim(job.id, "w1") is None
    assert repository.claim(job.id, "w2") is None
    assert repository.claim(some_id(), "w1") is None


def test_of_many_claimers_at_once_exactly_one_wins(repository: Repository, create: Create) -> None:
    jobs = [create() for _ in range(5)]
    wins: list[tuple[str, int]] = []
    barrier = threading.Barrier(4)

    def compete(worker: str) -> None:
        barrier.wait()
        for job in jobs:
            claim = repository.claim(job.id, worker)
            if claim is not None:
                wins.append((job.id, claim.attempt))

    threads = [threading.Thread(target=compete, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == sorted((job.id, 1) for job in jobs)


@pytest.mark.parametrize("ending", ["failed", "timed_out"])
def test_what_ends_badly_is_not_tried_again(repository: Repository, create: Create, ending: str) -> None:
    job = create()
    repository.claim(job.id, "w1")
    if ending == "failed":
        state = repository.mark_failed(job.id, 1, "non_finite_weights", "model.layers.0 holds NaN")
    else:
        state = repository.mark_timed_out(job.id, 1, "longer than 5 s")
    assert state == State(ending)
    ended = repository.get_job(job.id)
    assert ended.error is not None
    assert ended.error.code in ("non_finite_weights", "timed_out")
    assert repository.claim(job.id, "w1") is None
    assert repository.sweep_expired() == []
    assert repository.list_attempts(job.id)[0].outcome == Outcome(ending)


def test_a_lost_lease_puts_the_job_back_and_its_attempt_can_write_nothing(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    job = create()
    repository.claim(job.id, "w1")
    swept = lose_lease(repository, turn_back, job)
    assert [(j.id, j.state, j.lost_attempts) for j in swept] == [(job.id, State.QUEUED, 1)]
    published: list[int] = []
    # Between the sweep and the next claim the number is still the same: the state must refuse it.
    assert succeed(repository, job, 1, published) is None
    assert repository.heartbeat(job.id, 1) is None
    assert not repository.add_event(job.id, 1, "progress", {})
    assert repository.mark_failed(job.id, 1, "x", "y") is None
    assert repository.mark_lost(job.id, 1, "x", "y") is None
    assert repository.release_preempted(job.id, 1) is None
    second = repository.claim(job.id, "w2")
    assert second is not None
    assert second.attempt == 2
    assert succeed(repository, job, 1, published) is None
    assert repository.heartbeat(job.id, 1) is None
    assert published == []
    assert succeed(repository, job, 2, published) is State.SUCCEEDED
    assert published == [2]
    assert types(repository, job).count("succeeded") == 1
    assert [a.outcome for a in repository.list_attempts(job.id)] == [Outcome.LOST, Outcome.SUCCEEDED]


def test_a_live_lease_is_not_swept(repository: Repository, create: Create, turn_back: TurnBack) -> None:
    job = create()
    repository.claim(job.id, "w1")
    assert repository.sweep_expired() == []
    turn_back(job, "lease_expires_at", 3600)
    repository.heartbeat(job.id, 1)  # late, but before the sweeper
    assert repository.sweep_expired() == []


def test_a_job_whose_attempts_are_all_lost_fails(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    job = create()
    for attempt in (1, 2, 3):
        claim = repository.claim(job.id, "w1")
        assert claim is not None
        assert claim.attempt == attempt
        if attempt == 2:
            assert repository.mark_lost(job.id, 2, "engine_killed", "signal 9") is State.QUEUED
        else:
            lose_lease(repository, turn_back, job)
    ended = repository.get_job(job.id)
    assert ended.state is State.FAILED
    assert ended.error is not None
    assert ended.error.code == "attempts_exhausted"
    assert ended.lost_attempts == 3
    assert {a.outcome for a in repository.list_attempts(job.id)} == {Outcome.LOST}
    assert repository.retry_job(job.id).lost_attempts == 0
    claim = repository.claim(job.id, "w1")
    assert claim is not None
    assert claim.attempt == 4


def test_preemption_does_not_count(repository: Repository, create: Create) -> None:
    job = create()
    for attempt in range(1, 6):
        claim = repository.claim(job.id, "w1")
        assert claim is not None
        assert claim.attempt == attempt
        assert repository.release_preempted(job.id, attempt) is State.QUEUED
    job = repository.get_job(job.id)
    assert (job.state, job.lost_attempts, job.worker_id) == (State.QUEUED, 0, None)
    assert len(repository.take_outbox()) == 1


def test_a_result_that_arrives_while_cancelling_is_discarded(repository: Repository, create: Create) -> None:
    job = create()
    repository.claim(job.id, "w1")
    assert repository.cancel_job(job.id).state is State.CANCELLING
    assert repository.heartbeat(job.id, 1) is State.CANCELLING
    published: list[int] = []
    assert succeed(repository, job, 1, published) is State.CANCELLED
    assert published == []
    assert repository.list_artifacts(job.id) == []
    assert repository.get_job(job.id).state is State.CANCELLED


@pytest.mark.parametrize("how", ["lost", "failed", "preempted", "swept", "cancelled"])
def test_a_cancelling_job_becomes_cancelled_however_its_attempt_ends(
    repository: Repository, create: Create, turn_back: TurnBack, how: str
) -> None:
    job = create()
    repository.claim(job.id, "w1")
    repository.cancel_job(job.id)
    match how:
        case "lost":
            repository.mark_lost(job.id, 1, "engine_killed", "signal 9")
        case "failed":
            repository.mark_failed(job.id, 1, "x", "y")
        case "preempted":
            repository.release_preempted(job.id, 1)
        case "swept":
            lose_lease(repository, turn_back, job)
        case "cancelled":
            assert repository.mark_cancelled(job.id, 1) is State.CANCELLED
    assert repository.get_job(job.id).state is State.CANCELLED


def test_nobody_cancels_a_job_that_was_not_asked_to(repository: Repository, create: Create) -> None:
    job = create()
    repository.claim(job.id, "w1")
    assert repository.mark_cancelled(job.id, 1) is None
    assert repository.get_job(job.id).state is State.RUNNING


def test_repeating_the_completion_whose_answer_was_lost_is_safe(
    repository: Repository, create: Create
) -> None:
    job = create()
    repository.claim(job.id, "w1")
    published: list[int] = []
    assert succeed(repository, job, 1, published) is State.SUCCEEDED
    version = repository.get_job(job.id).version
    assert succeed(repository, job, 1, published) is State.SUCCEEDED
    assert published == [1]
    assert repository.get_job(job.id).version == version
    assert types(repository, job).count("succeeded") == 1


def test_if_publishing_fails_the_job_has_not_succeeded(repository: Repository, create: Create) -> None:
    job = create()
    repository.claim(job.id, "w1")

    def fail() -> None:
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        repository.mark_succeeded(
            job.id, 1, artifacts=[artifact(job, 1)], archive=None, metrics={}, publish=fail
        )
    assert repository.get_job(job.id).state is State.RUNNING
    assert repository.list_artifacts(job.id) == []
    assert types(repository, job) == ["queued", "started"]


def test_sweeper_and_completion_at_once_leave_exactly_one_truth(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    for _ in range(8):
        job = create()
        repository.claim(job.id, "w1")
        turn_back(job, "lease_expires_at", 3600)
        published: list[int] = []
        barrier = threading.Barrier(2)
        results: list[State | None] = []

        def complete(job: Job, barrier: threading.Barrier, into: list[State | None], done: list[int]) -> None:
            barrier.wait()
            into.append(succeed(repository, job, 1, done))

        thread = threading.Thread(target=complete, args=(job, barrier, results, published))
        thread.start()
        barrier.wait()
        repository.sweep_expired()
        thread.join()
        state = repository.get_job(job.id).state
        assert (state, published, results) in [
            (State.SUCCEEDED, [1], [State.SUCCEEDED]),
            (State.QUEUED, [], [None]),
        ]


def test_many_sweepers_at_once_count_a_lost_attempt_once(
    repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    job = create()
    repository.claim(job.id, "w1")
    turn_back(job, "lease_expires_at", 3600)
    threads = [threading.Thread(target=repository.sweep_expired) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert repository.get_job(job.id).lost_attempts == 1
    assert types(repository, job).count("lost") == 1
    assert len(repository.take_outbox()) == 1


def test_a_verdict_is_given_at_the_end(repository: Repository, create: Create) -> None:
    gates = [{"metric": "perplexity_ratio", "max": 1.3}, {"metric": "seconds", "max": 10}]
    job = create(gates=gates)
    repository.claim(job.id, "w1")
    assert repository.get_job(job.id).verdict is None
    succeed(repository, job, 1)
    assert repository.get_job(job.id).verdict == "inconclusive"
    assert [c.result for c in repository.get_checks(job.id)] == ["inconclusive", "pass"]
