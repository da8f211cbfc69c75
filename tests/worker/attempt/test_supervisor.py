"""One attempt, from claim to end state: each end is the right one, and a stale attempt leaves no trace."""

from __future__ import annotations

import errno
import hashlib
import json
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from jobs.admission import admit
from jobs.rows import Job
from jobs.specs import parse_request
from jobs.states import Outcome, State
from tests.worker.conftest import RESULT, ScriptedEngine
from tests.worker.inputs.test_inventory import write_model
from worker.attempt.supervisor import release_running, run_job
from worker.attempt.task import job_folder
from worker.beats import Beats
from worker.engine.process import Ended
from worker.services import Services

NewJob = Callable[..., Job]
EngineType = type[ScriptedEngine]


def state_of(services: Services, job: Job) -> Job:
    return services.repository.get_job(job.id)


def stored_folders(services: Services) -> list[str]:
    root = Path(services.settings.artifacts_url)
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*")) if root.exists() else []


def scratch_folders(services: Services) -> list[Path]:
    return list(services.attempts_dir.iterdir()) if services.attempts_dir.exists() else []


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


def lose_the_lease(services: Services, job: Job) -> None:
    """What the sweeper does to an attempt whose lease has run out."""
    with services.repository.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET lease_expires_at = 1 WHERE id = :id"), {"id": job.id})
    services.repository.sweep_expired()


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


def test_a_job_that_does_not_fit_on_the_disk_is_refused_clearly(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(services.store), "free_bytes", lambda _self: 99)
    spec = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 10}
    job = new_job("prune", spec)
    run_job(services, job.id)
    ended = state_of(services, job)
    assert ended.state is State.FAILED
    assert ended.error is not None and ended.error.code == "storage_full"
    assert "100 bytes" in ended.error.message
    small = new_job()  # analyze writes next to nothing: the service goes on
    run_job(services, small.id)
    assert state_of(services, small).state is State.SUCCEEDED


def test_a_job_that_widens_its_weights_needs_the_room_for_that(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = services.settings.models_dir / "half"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"w": {"dtype": "BF16", "shape": [500], "data_offsets": [0, 1000]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(1000)
    (folder / "model.safetensors").write_bytes(whole)
    monkeypatch.setattr(type(services.store), "free_bytes", lambda _self: 1900)
    ends = []
    for dtype in ("auto", "float32"):
        model = {"source": "local", "name": "half"}
        job = new_job("prune", {"model": model, "pruning_percentage": 10, "dtype": dtype})
        run_job(services, job.id)
        ends.append(state_of(services, job).state)
    assert ends == [State.SUCCEEDED, State.FAILED]


def test_unused_checkpoints_in_the_cache_make_room_for_a_job(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = services.settings.work_dir / "hub" / "acme--tiny@1"
    cached.mkdir(parents=True)
    monkeypatch.setattr(type(services.store), "free_bytes", lambda _self: 0 if cached.exists() else 1000)
    job = new_job("prune", {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 10})
    run_job(services, job.id)
    assert state_of(services, job).state is State.SUCCEEDED
    assert not cached.exists()


def test_a_disk_that_fills_while_an_earlier_checkpoint_is_fetched_is_named(
    services: Services, engine: EngineType, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_job()
    run_job(services, first.id)

    def full(*_: object) -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(services.store), "open_range", full)
    second = new_job(spec={"model": {"source": "job", "job_id": first.id}})
    run_job(services, second.id)
    ended = state_of(services, second)
    assert (ended.state, ended.attempt) == (State.FAILED, 1)
    assert ended.error is not None and ended.error.code == "storage_full"


def test_files_of_an_earlier_attempt_go_when_the_next_one_begins(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    job = new_job()
    services.repository.claim(job.id, "worker-that-was-killed")
    (services.store.stage(job.id, 1) / "half.safetensors").write_text("half")
    lose_the_lease(services, job)
    run_job(services, job.id)
    assert state_of(services, job).attempt == 2
    assert stored_folders(services) == [f"{job.id}/2"]


def test_an_earlier_jobs_checkpoint_is_fetched_and_checked(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    first = new_job()
    run_job(services, first.id)
    second = new_job(spec={"model": {"source": "job", "job_id": first.id}})
    run_job(services, second.id)
    assert state_of(services, second).state is State.SUCCEEDED
    (cached,) = [path for path in (services.settings.work_dir / "jobs").iterdir() if path.is_dir()]
    assert (cached / "config.json").read_text() == "{}"


def test_a_pipelines_step_is_fetched_under_the_names_that_transformers_expects(
    services: Services, engine: EngineType, new_job: NewJob
) -> None:
    first = new_job()
    attempt = services.repository.claim(first.id, "another")
    assert attempt is not None
    stage = services.store.stage(first.id, 1)
    for name in ("cut.config.json", "cut.model.safetensors", "other.config.json", "metrics.json"):
        (stage / name).write_text(name)
    sealed = services.store.seal(first.id, 1, finished_at=1000, steps=["cut", "other"])
    services.repository.mark_succeeded(
        first.id,
        1,
        artifacts=sealed.artifacts,
        archive=sealed.archive,
        metrics={},
        publish=lambda: services.store.publish(first.id, 1),
    )
    with job_folder(services, "acme", first.id, lambda: None, "cut") as folder:
        kept = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        assert kept == ["config.json", "model.safetensors"]
        assert (folder / "config.json").read_text() == "cut.config.json"


def test_a_job_of_another_tenant_is_no_model(services: Services, engine: EngineType, new_job: NewJob) -> None:
    first = new_job()
    run_job(services, first.id)
    with services.repository.engine.begin() as connection:
        connection.execute(text("INSERT INTO tenants VALUES ('other', 'x', 1, 1)"))
        connection.execute(text("UPDATE jobs SET tenant = 'other' WHERE id = :id"), {"id": first.id})
    second = new_job(spec={"model": {"source": "job", "job_id": first.id}})
    run_job(services, second.id)
    ended = state_of(services, second)
    assert ended.error is not None and ended.error.code == "model_not_found"


class TestReuse:
    """A result is offered for reuse only if it was made of the models that were there at admission."""

    def admitted(self, services: Services) -> Job:
        write_model(services.settings.models_dir / "half")
        services.inventory.scan()
        Beats(services, ["cpu"], "1")._beat()
        model = {"source": "local", "name": "half"}
        request = parse_request({"kind": "analyze", "spec": {"model": model}})
        key = admit(services.repository, "acme", request).reuse_key
        assert key is not None
        return services.repository.create_job("acme", request, queue="cpu", reuse_key=key)

    def test_an_unchanged_model_can_be_reused(self, services: Services, engine: EngineType) -> None:
        job = self.admitted(services)
        run_job(services, job.id)
        assert state_of(services, job).reuse_key == job.reuse_key
        assert state_of(services, job).warnings == []

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_another_model_under_the_same_name_cannot(
        self, services: Services, engine: EngineType, when: str
    ) -> None:
        job = self.admitted(services)

        def change() -> None:
            write_model(services.settings.models_dir / "half", b"\1" * 8)
            services.inventory.scan()

        if when == "before":
            change()
        else:
            engine.script = [change, RESULT]
        run_job(services, job.id)
        ended = state_of(services, job)
        assert (ended.state, ended.reuse_key) == (State.SUCCEEDED, None)
        told = [item["code"] for item in ended.warnings]
        assert told == (["changed_since_creation"] if when == "before" else [])
