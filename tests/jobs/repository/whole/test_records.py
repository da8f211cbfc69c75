"""Ended jobs go when their time has passed, with all that belongs to them; others and their files stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, func, select

from jobs import tables as t
from jobs.errors import NotFoundError
from jobs.repository import Repository
from jobs.rows import Artifact, Job
from jobs.settings import Settings

Create = Callable[..., Job]
TurnBack = Callable[..., None]
BELONGINGS = (t.events, t.attempts, t.attempt_logs, t.job_labels, t.artifacts, t.outbox, t.webhook_deliveries)


@pytest.fixture
def keeper(engine: Engine, settings: Settings, repository: Repository) -> Repository:
    """Keeps ended jobs for a minute, and their progress for half of one."""
    times = {"job_retention_seconds": 60, "progress_retention_seconds": 30}
    return Repository(engine, settings.model_copy(update=times))


def succeed(repository: Repository, job: Job, storage: str) -> None:
    """One attempt that publishes a file and leaves a log."""
    repository.claim(job.id, "w")
    repository.put_log(job.id, 1, ["done"], 0)
    file = Artifact("a.txt", "text/plain", 1, "0" * 64, storage, None, None)
    repository.mark_succeeded(job.id, 1, artifacts=[file], archive=None, metrics={}, publish=lambda: None)


def rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in BELONGINGS
        }


def test_an_old_job_goes_with_all_that_belongs_to_it(
    keeper: Repository, create: Create, turn_back: TurnBack, engine: Engine
) -> None:
    old = create(labels={"team": "nlp"}, webhook_url="https://example.org/hook")
    succeed(keeper, old, f"{old.id}/1")
    (delivery,) = keeper.take_deliveries()
    turn_back(old, "finished_at", 61)
    assert keeper.forget_ended_jobs().jobs == 0  # the webhook has not been told yet
    keeper.mark_delivered(delivery.id, 204)
    assert min(rows(engine)[table.name] for table in BELONGINGS if table is not t.outbox) > 0
    forgotten = keeper.forget_ended_jobs()
    assert (forgotten.jobs, forgotten.folders) == (1, [f"{old.id}/1"])
    assert set(rows(engine).values()) == {0}
    with pytest.raises(NotFoundError):
        keeper.get_job(old.id)
    assert keeper.count_states() == {}


def test_what_is_young_or_goes_on_stays(
    keeper: Repository, repository: Repository, create: Create, turn_back: TurnBack
) -> None:
    young, running, retried = create(), create(), create()
    keeper.cancel_job(young.id)
    turn_back(young, "finished_at", 40)
    keeper.claim(running.id, "w")
    keeper.cancel_job(retried.id)
    turn_back(retried, "finished_at", 100)
    assert repository.forget_ended_jobs().jobs == 0  # without the setting nothing ever goes
    keeper.retry_job(retried.id)
    assert keeper.forget_ended_jobs().jobs == 0


def test_files_that_another_job_shares_stay(keeper: Repository, create: Create, turn_back: TurnBack) -> None:
    old, new = create(), create()
    for job in (old, new):
        succeed(keeper, job, f"{old.id}/1")
    turn_back(old, "finished_at", 61)
    assert keeper.forget_ended_jobs().folders == []
    turn_back(new, "finished_at", 61)
    assert keeper.forget_ended_jobs().folders == [f"{old.id}/1"]


def test_they_go_a_few_at_a_time(keeper: Repository, create: Create, turn_back: TurnBack) -> None:
    for _ in range(5):
        job = create()
        keeper.cancel_job(job.id)
        turn_back(job, "finished_at", 61)
    assert [keeper.forget_ended_jobs(limit=2).jobs for _ in range(4)] == [2, 2, 1, 0]


def test_progress_is_thinned_to_the_ends_of_each_stage(
    keeper: Repository, create: Create, turn_back: TurnBack, engine: Engine
) -> None:
    job, young = create(), create()
    for each in (job, young):
        keeper.claim(each.id, "w")
        for stage, steps in (("load", 1), ("calibrate", 6), ("save", 2)):
            for done in range(steps):
                keeper.add_event(each.id, 1, "progress", {"stage": stage, "done": done})
        keeper.add_event(each.id, 1, "execution", {})
        keeper.mark_failed(each.id, 1, "x", "x")
    turn_back(job, "finished_at", 31)
    before = [event.type for event in keeper.list_events(young.id)]
    place = keeper.thin_progress(None)
    assert place is not None
    assert keeper.thin_progress(place) is None
    kept = [
        (event.type, event.data.get("stage"), event.data.get("done")) for event in keeper.list_events(job.id)
    ]
    assert kept == [
        ("queued", None, None),
        ("started", None, None),
        ("progress", "load", 0),
        ("progress", "calibrate", 0),
        ("progress", "calibrate", 5),
        ("progress", "save", 0),
        ("progress", "save", 1),
        ("execution", None, None),
        ("failed", None, None),
    ]
    assert [event.type for event in keeper.list_events(young.id)] == before
    turn_back(young, "finished_at", 30)
    assert keeper.thin_progress(place) is not None  # it goes on where it had stopped
    assert len(keeper.list_events(young.id)) == len(kept)
