"""A worker that takes one job and ends: at most one, and none if none comes in time."""

from __future__ import annotations

from collections.abc import Callable

from jobs.rows import Job
from jobs.states import State
from tests.worker.conftest import ScriptedEngine
from worker.once import take_one
from worker.services import Services


def test_it_takes_one_job_and_leaves_the_next(
    services: Services, engine: type[ScriptedEngine], new_job: Callable[..., Job]
) -> None:
    jobs = [new_job(), new_job()]
    assert take_one(services, 30)
    assert [services.repository.get_job(job.id).state for job in jobs] == [State.SUCCEEDED, State.QUEUED]


def test_it_ends_too_when_none_comes(services: Services) -> None:
    assert not take_one(services, 0)


def test_one_that_is_to_stop_takes_none(services: Services, new_job: Callable[..., Job]) -> None:
    job = new_job()
    services.stopping.set()
    assert not take_one(services, 30)
    assert services.repository.get_job(job.id).state is State.QUEUED
