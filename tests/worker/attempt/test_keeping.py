"""What a pipeline's finished steps left stays when a later one fails, and the next attempt uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.rows import Job
from jobs.states import State
from tests.worker.attempt.test_supervisor import scratch_folders, stored_folders
from tests.worker.conftest import ScriptedEngine
from tests.worker.inputs.test_inventory import write_model
from worker.attempt.supervisor import Supervisor, run_job
from worker.engine.process import Ended
from worker.engine.steps import flatten_steps
from worker.services import Services

EngineType = type[ScriptedEngine]
FAILURE = {"type": "error", "code": "calibration_error", "message": "no text", "retry": False}


@pytest.fixture
def pipeline(services: Services, new_job: Callable[..., Job]) -> Job:
    """Two steps on a model whose revision is known."""
    write_model(services.settings.models_dir / "half")
    services.inventory.scan()
    spec = {"model": {"source": "local", "name": "half"}}
    steps = [{"name": name, "kind": "analyze", "spec": spec} for name in ("first", "second")]
    return new_job(kind="pipeline", spec={"steps": steps})


def finish(services: Services, job: Job, attempt: int, step: str) -> list[Any]:
    """What an engine says and writes when a step is done and the next has begun."""

    def write() -> None:
        folder = services.store.stage(job.id, attempt) / "steps" / step
        folder.mkdir(parents=True)
        (folder / "table.json").write_text(step)
        (folder.parent / "half-done").mkdir()

    done = {"step": step, "metrics": {"parameters": len(step), "seconds": 1}}
    return [write, {"type": "announcement", "what": "step_finished", "data": done}]


def names(services: Services, job: Job) -> list[str]:
    return [artifact.name for artifact in services.repository.list_artifacts(job.id)]


@pytest.mark.parametrize(
    ("end", "state"),
    [(FAILURE, State.FAILED), (Ended(-9), State.QUEUED)],
    ids=["an error of the user", "an engine that was killed"],
)
def test_the_finished_steps_are_published_though_the_job_does_not_succeed(
    services: Services, engine: EngineType, pipeline: Job, end: Any, state: State
) -> None:
    engine.script = [*finish(services, pipeline, 1, "first"), end]
    run_job(services, pipeline.id)
    job = services.repository.get_job(pipeline.id)
    assert (job.state, job.kept_steps, job.artifacts_expire_at is not None) == (state, ["first"], True)
    assert names(services, job) == ["first.table.json", "metrics.json"]
    metrics = {"first.parameters": 5, "first.seconds": 1, "parameters": 5, "seconds": 1}
    assert services.repository.get_metrics(job.id) == metrics
    assert stored_folders(services) == [f"{job.id}/1"] and scratch_folders(services) == []
    events = {event.type: event.data for event in services.repository.list_events(job.id)}
    assert events["step_finished"] == {"step": "first"}


def test_the_finished_steps_of_an_attempt_that_a_shutdown_ends_are_kept(
    services: Services, engine: EngineType, pipeline: Job
) -> None:
    engine.script = [*finish(services, pipeline, 1, "first"), services.stopping.set]
    run_job(services, pipeline.id)
    job = services.repository.get_job(pipeline.id)
    assert (job.state, job.lost_attempts, job.kept_steps) == (State.QUEUED, 0, ["first"])
    assert names(services, job) == ["first.table.json", "metrics.json"]
    assert stored_folders(services) == [f"{job.id}/1"]


def test_a_shutdown_does_not_wait_for_steps_that_take_long_to_store(
    services: Services, engine: EngineType, pipeline: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempt.supervisor._KEEPING_SECONDS", -1.0)
    engine.script = [*finish(services, pipeline, 1, "first"), services.stopping.set]
    run_job(services, pipeline.id)
    job = services.repository.get_job(pipeline.id)
    assert (job.state, job.kept_steps, stored_folders(services)) == (State.QUEUED, [], [])


def test_a_retry_is_given_the_finished_steps_and_publishes_everything(
    services: Services, engine: EngineType, pipeline: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.script = [*finish(services, pipeline, 1, "first"), FAILURE]
    run_job(services, pipeline.id)
    services.repository.retry_job(pipeline.id)
    assert names(services, pipeline) == ["first.table.json", "metrics.json"]  # all the while
    given: dict[str, Any] = {}

    class Second(engine):  # type: ignore[valid-type,misc]
        def __init__(self, context: object, task: dict[str, Any], log: Path) -> None:
            super().__init__(context, task, log)
            given.update(task["finished"])
            folder = Path(task["output"], "steps", "first")
            given["files"] = {path.name: path.read_text() for path in folder.iterdir()}

    result = {"type": "result", "metrics": {"first.parameters": 5, "second.parameters": 6}}
    output = services.store.stage(pipeline.id, 2)
    Second.script = [lambda: flatten_steps(output), result]
    monkeypatch.setattr("worker.attempt.supervisor.EngineProcess", Second)
    run_job(services, pipeline.id)
    job = services.repository.get_job(pipeline.id)
    assert (job.state, job.attempt, job.kept) == (State.SUCCEEDED, 2, None)
    assert given == {
        "first": {"parameters": 5, "seconds": 1},
        "files": {"table.json": "first"},
    }
    assert stored_folders(services) == [f"{job.id}/2"]
    assert "first.table.json" in names(services, job)


@pytest.mark.parametrize("changed", ["model", "code", "file"])
def test_steps_of_another_model_or_code_or_with_damaged_files_are_not_gone_on_from(
    services: Services,
    engine: EngineType,
    pipeline: Job,
    changed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.script = [*finish(services, pipeline, 1, "first"), FAILURE]
    run_job(services, pipeline.id)
    if changed == "model":
        write_model(services.settings.models_dir / "half", b"\1" * 8)
        services.inventory.scan()
    elif changed == "code":
        monkeypatch.setattr(Services, "code_version", "another")
    else:
        stored = Path(services.settings.artifacts_url, pipeline.id, "1", "first.table.json")
        stored.write_text("FIRST")
    services.repository.retry_job(pipeline.id)
    tasks: list[dict[str, Any]] = []
    build = engine.__init__

    def remember(self: ScriptedEngine, context: object, task: dict[str, Any], log: Path) -> None:
        tasks.append(json.loads(json.dumps(task)))
        assert not Path(task["output"], "steps").exists()
        build(self, context, task, log)

    monkeypatch.setattr(engine, "__init__", remember)
    engine.script = [FAILURE]
    run_job(services, pipeline.id)
    assert [task["finished"] for task in tasks] == [{}]
    # what was to be had stays so
    assert services.repository.get_job(pipeline.id).kept_steps == ["first"]


def test_the_files_of_a_failed_pipeline_go_with_it_and_with_their_time(
    services: Services, engine: EngineType, pipeline: Job
) -> None:
    engine.script = [*finish(services, pipeline, 1, "first"), FAILURE]
    run_job(services, pipeline.id)
    with services.repository.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET artifacts_expire_at = 1")
    assert services.repository.take_expired_artifacts() == [f"{pipeline.id}/1"]
    job = services.repository.get_job(pipeline.id)
    assert (job.kept, job.artifacts_expire_at, names(services, job)) == (None, None, [])


def test_steps_that_are_purged_after_the_claim_are_not_gone_on_from(
    services: Services, engine: EngineType, pipeline: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.script = [*finish(services, pipeline, 1, "first"), FAILURE]
    run_job(services, pipeline.id)
    services.repository.retry_job(pipeline.id)
    claim = services.repository.claim(pipeline.id, services.worker_id)
    assert claim is not None and claim.job.kept_steps == ["first"]
    with services.repository.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET artifacts_expire_at = 1")
    services.repository.take_expired_artifacts()
    tasks: list[dict[str, Any]] = []
    build = engine.__init__

    def remember(self: ScriptedEngine, context: object, task: dict[str, Any], log: Path) -> None:
        tasks.append(json.loads(json.dumps(task)))
        build(self, context, task, log)

    monkeypatch.setattr(engine, "__init__", remember)
    engine.script = [FAILURE]
    Supervisor(services, claim).run()
    assert [task["finished"] for task in tasks] == [{}]


def test_an_engine_that_ends_while_it_flattens_the_steps_costs_none_of_their_files(
    services: Services, engine: EngineType, pipeline: Job
) -> None:
    def flatten_one() -> None:
        output = services.store.stage(pipeline.id, 1)
        (output / "steps" / "first" / "table.json").rename(output / "first.table.json")

    engine.script = [*finish(services, pipeline, 1, "first"), flatten_one, Ended(-9)]
    run_job(services, pipeline.id)
    job = services.repository.get_job(pipeline.id)
    assert (job.kept_steps, names(services, job)) == (["first"], ["first.table.json", "metrics.json"])


def test_a_step_that_the_job_does_not_have_is_no_news(
    services: Services, engine: EngineType, pipeline: Job
) -> None:
    engine.script = finish(services, pipeline, 1, "third")
    run_job(services, pipeline.id)
    (lost,) = [event for event in services.repository.list_events(pipeline.id) if event.type == "lost"]
    assert lost.data["code"] == "engine_protocol"
    assert names(services, pipeline) == []
