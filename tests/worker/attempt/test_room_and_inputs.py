"""What an attempt needs before its engine starts: room on the disk, earlier checkpoints, results to reuse."""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from jobs.admission import admit
from jobs.rows import Job
from jobs.specs import parse_request
from jobs.states import State
from tests.worker.attempt.looks import EngineType, NewJob, lose_the_lease, state_of, stored_folders
from tests.worker.conftest import RESULT
from tests.worker.inputs.test_inventory import write_model
from worker.attempt.supervisor import run_job
from worker.attempt.task import job_folder
from worker.beats import Beats
from worker.services import Services


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
