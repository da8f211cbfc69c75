"""One attempt, from claim to end state: each end is the right one, and a stale attempt leaves no trace."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jobs.rows import Job
from jobs.states import Outcome, State
from tests.worker.attempt.looks import (
    EngineType,
    NewJob,
    lose_the_lease,
    scratch_folders,
    state_of,
    stored_folders,
)
from tests.worker.conftest import RESULT
from worker.attempt import supervisor
from worker.attempt.supervisor import release_running, run_job
from worker.engine.process import Ended
from worker.services import Services


def test_a_result_is_published_with_its_hashes(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    progress = {"type": "progress", "stage": "load", "done": 1, "total": 1, "message": "loaded"}
    engine.script = [progress, RESULT]
    job = new_job()
    run_job(services, job.id)
    ended = state_of(services, job)
    assert ended.state is State.SUCCEEDED
    assert services.repository.get_metrics(job.id) == {"parameters": 7}
    (artifact,) = services.repository.list_artifacts(job.id)
    assert (artifact.name, artifact.size) == ("config.json", 2)
    assert artifact.sha256 == hashlib.sha256(b"{}").hexdigest()
    assert b"".join(services.store.open_range(artifact.storage, "config.json", 0, 2)) == b"{}"
    assert stored_folders(services) == [f"{job.id}/1"]
    assert [event.type for event in services.repository.list_events(job.id)] == [
        "queued",
        "started",
        "progress",
        "succeeded",
    ]
    assert engine.stopped == 1 and scratch_folders(services) == []


def test_a_users_error_fails_the_job_at_the_first_attempt(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    text = f"{services.settings.models_dir}/tiny/model.safetensors: NaN in w"
    engine.script = [{"type": "error", "code": "weights_not_finite", "message": text, "retry": False}]
    job = new_job()
    run_job(services, job.id)
    ended = state_of(services, job)
    assert (ended.state, ended.attempt) == (State.FAILED, 1)
    assert ended.error is not None and ended.error.code == "weights_not_finite"
    assert ended.error.message == "tiny/model.safetensors: NaN in w"  # no folder of this machine
    assert stored_folders(services) == []


def test_a_suites_folder_outside_of_the_data_folder_is_not_told_either(
    services: Services, engine: EngineType, new_job: NewJob, tmp_path: Path
) -> None:
    elsewhere = tmp_path.parent / "mounted"
    moved = services.settings.model_copy(update={"suites_dir": elsewhere})
    said = f"The data of the suite bbq are not in {elsewhere} (Age.jsonl): put them into {elsewhere}/bbq"
    engine.script = [{"type": "error", "code": "suite_data", "message": said, "retry": False}]
    job = new_job()
    run_job(replace(services, settings=moved), job.id)
    ended = state_of(services, job)
    assert ended.error is not None
    assert (
        ended.error.message
        == "The data of the suite bbq are not in suites (Age.jsonl): put them into suites/bbq"
    )


def test_a_file_that_cannot_be_an_artifact_fails_the_job_at_the_first_attempt(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    job = new_job()
    engine.script = [lambda: (services.store.stage(job.id, 1) / "folder").mkdir(), RESULT]
    run_job(services, job.id)
    ended = state_of(services, job)
    assert (ended.state, ended.attempt) == (State.FAILED, 1)
    assert ended.error is not None and ended.error.code == "artifact_name"
    assert "folder" in ended.error.message


@pytest.mark.parametrize(
    "step", [Ended(-9), Ended(255), {"type": "error", "code": "out_of_memory", "message": "", "retry": True}]
)
def test_an_engine_that_always_dies_exhausts_the_attempts(
    services: Services, engine: EngineType, new_job: NewJob, step: Any
) -> None:
    engine.script = [step]
    job = new_job()
    for _ in range(3):
        run_job(services, job.id)
    run_job(services, job.id)  # a late message changes nothing
    ended = state_of(services, job)
    assert (ended.state, ended.attempt) == (State.FAILED, 3)
    assert ended.error is not None and ended.error.code == "attempts_exhausted"
    assert stored_folders(services) == []


def test_a_cancelled_job_stops_its_engine(services: Services, engine: EngineType, new_job: NewJob) -> None:
    job = new_job()
    engine.script = [lambda: services.repository.cancel_job(job.id) and None]
    run_job(services, job.id)
    assert state_of(services, job).state is State.CANCELLED
    assert engine.stopped == 1 and stored_folders(services) == []


def test_a_result_that_comes_after_the_cancel_is_discarded(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    job = new_job()
    engine.script = [lambda: services.repository.cancel_job(job.id) and None, RESULT]
    run_job(services, job.id)
    assert state_of(services, job).state is State.CANCELLED
    assert services.repository.list_artifacts(job.id) == []
    assert stored_folders(services) == []


def test_a_job_that_takes_too_long_is_timed_out(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    engine.script = []
    job = new_job(timeout_seconds=1)
    run_job(services, job.id)
    assert state_of(services, job).state is State.TIMED_OUT
    assert engine.stopped == 1 and stored_folders(services) == []


def test_a_shutdown_releases_the_job_without_counting_the_attempt(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    engine.script = [services.stopping.set]
    job = new_job()
    run_job(services, job.id)
    ended = state_of(services, job)
    assert (ended.state, ended.lost_attempts) == (State.QUEUED, 0)
    assert services.repository.list_attempts(job.id)[0].outcome is Outcome.PREEMPTED


def assert_preempted(services: Services, job: Job) -> None:
    ended = state_of(services, job)
    assert (ended.state, ended.lost_attempts) == (State.QUEUED, 0)
    assert services.repository.list_attempts(job.id)[-1].outcome is Outcome.PREEMPTED
    assert f"{job.id}/1" not in stored_folders(services) and scratch_folders(services) == []


def impatient(services: Services) -> Services:
    return replace(services, settings=services.settings.model_copy(update={"grace_seconds": 0.0}))


def test_a_shutdown_ends_the_storing_of_a_result(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = type(services.store).seal

    def seal(*args: Any, **options: Any) -> Any:
        services.stopping.set()
        return genuine(*args, **options)

    monkeypatch.setattr(type(services.store), "seal", seal)
    job = new_job()
    run_job(impatient(services), job.id)
    assert_preempted(services, job)


def test_a_shutdown_ends_the_fetching_of_an_earlier_checkpoint(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_job()
    run_job(services, first.id)

    def endless(*_: object) -> Iterator[bytes]:
        services.stopping.set()
        while True:
            yield b"x"

    monkeypatch.setattr(type(services.store), "open_range", endless)
    second = new_job(spec={"model": {"source": "job", "job_id": first.id}})
    run_job(impatient(services), second.id)
    assert_preempted(services, second)
    assert not [path for path in (services.settings.work_dir / "jobs").iterdir() if path.is_dir()]


@pytest.mark.parametrize("end", [Ended(-signal.SIGTERM), Ended(255)])
def test_a_signal_that_reaches_the_engine_before_its_worker_is_a_shutdown(
    services: Services, engine: EngineType, new_job: NewJob, end: Ended
) -> None:
    engine.script = [lambda: threading.Timer(0.2, services.stopping.set).start(), end]
    job = new_job()
    run_job(services, job.id)
    assert_preempted(services, job)


def test_a_part_of_the_engine_that_the_shutdown_ended_is_no_loss(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    killed = {"type": "error", "code": "reload_check_killed", "message": "signal 15", "retry": True}
    engine.script = [services.stopping.set, killed]
    job = new_job()
    patient = services.settings.model_copy(update={"grace_seconds": 60.0})
    run_job(replace(services, settings=patient), job.id)
    assert_preempted(services, job)


def test_an_attempt_that_does_not_stop_in_time_is_put_back(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    job = new_job()
    engine.script = [lambda: release_running(services), RESULT]
    run_job(services, job.id)
    assert_preempted(services, job)
    assert services.running == []


def test_the_stage_is_empty_before_a_failure_is_written(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = services.repository.mark_failed

    def mark_failed(*args: Any) -> State | None:
        assert stored_folders(services) == [] and scratch_folders(services) == []  # the disk has room again
        return genuine(*args)

    monkeypatch.setattr(services.repository, "mark_failed", mark_failed)
    engine.script = [{"type": "error", "code": "storage_full", "message": "no space", "retry": False}]
    job = new_job()
    run_job(services, job.id)
    assert state_of(services, job).state is State.FAILED


@pytest.mark.parametrize("claimed_again", [False, True])
def test_a_stale_attempt_publishes_nothing_and_cleans_up(
    services: Services, engine: EngineType, new_job: NewJob, claimed_again: bool
) -> None:
    job = new_job()

    def replace_attempt() -> None:
        lose_the_lease(services, job)
        if claimed_again:
            assert services.repository.claim(job.id, "worker-2") is not None

    slow_heart = services.settings.model_copy(update={"heartbeat_seconds": 60.0})
    engine.script = [replace_attempt, RESULT]
    run_job(replace(services, settings=slow_heart), job.id)
    ended = state_of(services, job)
    assert ended.state is (State.RUNNING if claimed_again else State.QUEUED)
    assert services.repository.list_artifacts(job.id) == []
    assert stored_folders(services) == []
    types = [event.type for event in services.repository.list_events(job.id)]
    assert "succeeded" not in types and types.count("lost") == 1


def test_a_replaced_attempt_stops_its_engine_at_the_next_heartbeat(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    job = new_job()
    engine.script = [lambda: lose_the_lease(services, job)]
    run_job(services, job.id)
    assert engine.stopped == 1
    assert state_of(services, job).state is State.QUEUED


def test_a_commit_whose_answer_is_lost_keeps_its_files(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = services.repository.mark_succeeded
    calls: list[int] = []

    def lose_the_answer(*args: Any, **kwargs: Any) -> State | None:
        state = genuine(*args, **kwargs)
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("COMMIT", {}, ConnectionError("server closed the connection"))
        return state

    monkeypatch.setattr(services.repository, "mark_succeeded", lose_the_answer)
    job = new_job()
    run_job(services, job.id)
    assert len(calls) == 2
    assert state_of(services, job).state is State.SUCCEEDED
    assert stored_folders(services) == [f"{job.id}/1"]
    types = [event.type for event in services.repository.list_events(job.id)]
    assert types.count("succeeded") == 1


@pytest.mark.parametrize("asking", ["has_changed", "build_task", "is_as_admitted"])
def test_a_database_that_is_away_for_a_moment_costs_no_attempt(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch, asking: str
) -> None:
    genuine = getattr(supervisor, asking)
    calls: list[int] = []

    def be_away_at_first(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("SELECT", {}, ConnectionError("server closed the connection"))
        return genuine(*args)

    monkeypatch.setattr(supervisor, asking, be_away_at_first)
    job = new_job()
    run_job(services, job.id)
    assert len(calls) == 2
    assert (state_of(services, job).state, state_of(services, job).attempt) == (State.SUCCEEDED, 1)
