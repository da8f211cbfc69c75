"""A message makes a worker take the job whose turn it is, and no message is lost by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.rows import Job
from jobs.specs import parse_request
from tests.worker.conftest import ScriptedEngine
from worker.attempt import turns
from worker.attempt.turns import run_next
from worker.services import Services

NewJob = Callable[..., Job]
BODY = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}


def states(services: Services, *jobs: Job) -> list[str]:
    return [services.repository.get_job(job.id).state.value for job in jobs]


def test_another_tenants_turn_comes_first(
    services: Services, engine: type[ScriptedEngine], new_job: NewJob
) -> None:
    mine = [new_job() for _ in range(2)]
    services.repository.claim(mine[0].id, "another worker")
    services.repository.ensure_tenant("other")
    theirs = services.repository.create_job("other", parse_request(BODY), queue="cpu")
    assert run_next(services, "cpu", mine[1].id) == theirs.id
    assert states(services, *mine, theirs) == ["running", "queued", "succeeded"]
    assert run_next(services, "cpu", theirs.id) == mine[1].id  # the message that is left does for the other
    assert run_next(services, "cpu", theirs.id) is None


@pytest.mark.parametrize("named", [0, 1])
def test_a_job_that_is_better_elsewhere_is_passed_over(
    services: Services,
    engine: type[ScriptedEngine],
    new_job: NewJob,
    monkeypatch: pytest.MonkeyPatch,
    named: int,
) -> None:
    jobs = [new_job() for _ in range(2)]
    monkeypatch.setattr(turns, "is_better_elsewhere", lambda _books, job_id, _worker: job_id == jobs[0].id)
    assert run_next(services, "cpu", jobs[named].id) == jobs[1].id
    assert states(services, *jobs) == ["queued", "succeeded"]


def test_a_message_goes_back_when_all_are_better_elsewhere(
    services: Services, engine: type[ScriptedEngine], new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, ended = new_job(), new_job()
    services.repository.cancel_job(ended.id)
    services.repository.mark_published(services.repository.take_outbox())
    monkeypatch.setattr(turns, "is_better_elsewhere", lambda *_: True)
    declined: list[str] = []
    monkeypatch.setattr(type(services.repository), "decline", lambda _self, job_id: declined.append(job_id))
    assert run_next(services, "cpu", job.id) is None
    assert declined == [job.id]


def test_a_named_job_far_behind_is_still_looked_at(
    services: Services, engine: type[ScriptedEngine], new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [new_job() for _ in range(22)]
    suited = jobs[-1].id
    monkeypatch.setattr(turns, "is_better_elsewhere", lambda _books, job_id, _worker: job_id != suited)
    assert run_next(services, "cpu", suited) == suited


def test_a_job_whose_message_started_another_one_still_has_one_to_come(
    services: Services, engine: type[ScriptedEngine], new_job: NewJob
) -> None:
    first, second = new_job(), new_job()
    sent = [entry for entry in services.repository.take_outbox() if entry.job_id == second.id]
    services.repository.mark_published(sent)
    assert run_next(services, "cpu", second.id) == first.id
    assert states(services, first, second) == ["succeeded", "queued"]
    with services.repository.engine.connect() as connection:
        messages = list(connection.exec_driver_sql("SELECT job_id FROM outbox").scalars())
    assert messages == [first.id]
    assert run_next(services, "cpu", first.id) == second.id
