"""What the loops keep and remove: figures that are right, jobs and progress no longer than they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from api.background.loops import Loops
from api.context import Services
from tests.api.conftest import Caller, FakeWorker


def one_round(services: Services, name: str) -> bool:
    """One round of a loop."""

    async def story() -> bool:
        loops = Loops(services)
        try:
            more: bool = await getattr(loops, name)()
        finally:
            await loops.close()
        return more

    return asyncio.run(story())


def test_figures_that_went_wrong_are_put_right_once_in_a_while(
    services: Services, caller: Caller, worker: FakeWorker
) -> None:
    caller.create()
    for expected in (1, 0):  # the first round counts; the next one is not due
        with services.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM tallies")
        one_round(services, "keep_books")
        assert sum(services.repository.count_states().values()) == expected


@pytest.mark.parametrize("seconds", [3600, 30])
def test_ended_jobs_go_with_their_files_when_their_time_has_passed(
    make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker, seconds: int
) -> None:
    app = make_app(job_retention_seconds=seconds)
    services: Services = app.state.services
    caller = Caller(app, make_key())
    job = caller.create()
    FakeWorker(services).run(job["id"])
    with services.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET finished_at = finished_at - 60000")
    gone = seconds < 60
    assert one_round(services, "purge") == gone
    assert caller.get(f"/v1/jobs/{job['id']}").status_code == (404 if gone else 200)
    assert bool(list(services.store.folders())) != gone


def test_progress_is_thinned_by_one_process_at_a_time(
    make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
) -> None:
    app = make_app(progress_retention_seconds=30)
    services: Services = app.state.services
    caller, maker = Caller(app, make_key()), FakeWorker(services)
    job = caller.create()["id"]
    attempt = maker.claim(job)
    for step in range(5):
        maker.progress(job, attempt, step / 10)
    maker.succeed(job, attempt)
    with services.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET finished_at = finished_at - 60000")
    other = services.repository.take_duty("thin", lease_seconds=60)
    assert other is not None

    def told() -> int:
        events = caller.get(f"/v1/jobs/{job}/events").json()["items"]
        return sum(event["type"] == "progress" for event in events)

    one_round(services, "purge")
    assert told() == 5  # another process is at it
    services.repository.end_duty(other, again_in_seconds=0)
    one_round(services, "purge")
    assert told() == 2
