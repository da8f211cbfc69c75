"""Many workers that die, stall and come back, sweepers at the same time, users who cancel: nothing is lost.

Real processes, real SIGKILL, both engines. The chaos of the whole service (with broker, API and torch) is
`make chaos`; this is the part that the repository and the store must hold alone.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from jobs.artifacts import make_store, remove_orphans
from jobs.errors import ConflictError
from jobs.repository import Repository
from jobs.rows import Job
from jobs.settings import Settings
from jobs.states import Outcome, State
from tests.jobs.conftest import TENANT, prune_request
from tests.jobs.repository import storm_worker

pytestmark = pytest.mark.slow
JOBS, POISONED, WORKERS, LEASE = 30, 2, 4, 0.4


@pytest.fixture
def stormy(engine: Engine, tmp_path: Path) -> Repository:
    url = engine.url.render_as_string(hide_password=False)
    settings = Settings(
        data_dir=tmp_path / "data",
        database_url=url,
        lease_seconds=LEASE,
        heartbeat_seconds=LEASE / 4,
        max_attempts=4,
        min_free_bytes=0,
    )
    repository = Repository(engine, settings)
    repository.ensure_tenant(TENANT)
    return repository


class Crew:
    """Worker processes; the dead are replaced."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings, self.log, self.started, self.killed = settings, log, 0, 0
        self.processes: list[BaseProcess] = []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.jobs.repository.storm_worker"])

    def keep_up(self) -> None:
        alive = [process for process in self.processes if process.is_alive()]
        self.killed += len(self.processes) - len(alive)
        self.processes = alive
        while len(self.processes) < WORKERS:
            self.started += 1
            arguments = (self.settings.model_dump_json(), str(self.log), self.started)
            process = self.context.Process(target=storm_worker.main, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def dismiss(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def weather(repository: Repository, crew: Crew, ids: list[str]) -> None:
    """Sweep, cancel now and then, and replace the dead, until every job has ended."""
    chance = random.Random(7)
    deadline = time.monotonic() + 120
    while not all(version.terminal for version in repository.versions(ids).values()):
        assert time.monotonic() < deadline, repository.count_states()
        crew.keep_up()
        repository.sweep_expired()
        repository.mark_published(repository.take_outbox())
        if chance.random() < 0.03:
            job = repository.get_job(chance.choice(ids))
            if job.state in (State.QUEUED, State.RUNNING):
                with suppress(ConflictError):  # it may end in between
                    repository.cancel_job(job.id)
        time.sleep(0.05)


def check_job(repository: Repository, job: Job) -> None:
    events = repository.list_events(job.id)
    attempts = repository.list_attempts(job.id)
    assert [event.seq for event in events] == list(range(1, job.last_seq + 1))
    assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
    assert all(attempt.outcome is not Outcome.RUNNING for attempt in attempts)
    assert sum(attempt.outcome is Outcome.LOST for attempt in attempts) == job.lost_attempts
    succeeded = [event for event in events if event.type == "succeeded"]
    artifacts = repository.list_artifacts(job.id)
    if job.state is State.SUCCEEDED:
        assert len(succeeded) == 1
        assert [item.storage for item in artifacts] == [f"{job.id}/{job.attempt}"]
    else:
        assert succeeded == artifacts == []
    if job.state is State.FAILED and job.lost_attempts >= job.max_attempts:
        assert job.error is not None
        assert job.error.code == "attempts_exhausted"


def test_nothing_is_lost_and_nothing_comes_twice(stormy: Repository, tmp_path: Path) -> None:
    store = make_store(stormy.settings)
    poison = {"labels": {"poison": "yes"}}
    requests = [prune_request(**(poison if n < POISONED else {})) for n in range(JOBS)]
    ids = [stormy.create_job(TENANT, request, queue="cpu").id for request in requests]
    crew = Crew(stormy.settings, tmp_path / "log")
    try:
        weather(stormy, crew, ids)
        time.sleep(LEASE * 2)  # the last sleepers come back, too late
    finally:
        crew.dismiss()
    jobs = [stormy.get_job(job_id) for job_id in ids]
    for job in jobs:
        check_job(stormy, job)
    ended = [job.state for job in jobs]
    assert ended.count(State.SUCCEEDED) > JOBS / 3
    assert all(job.state in (State.FAILED, State.CANCELLED) for job in jobs[:POISONED])
    lost = sum(job.lost_attempts for job in jobs)
    stale = (tmp_path / "log").read_bytes().count(b"stale")
    assert lost >= 10
    assert crew.killed >= 5
    assert stale >= 1, "no attempt came back too late: the storm was too mild to show anything"
    remove_orphans(stormy, store, grace_seconds=-5)
    published = {(folder.job_id, folder.attempt) for folder in store.folders()}
    assert published == {(job.id, job.attempt) for job in jobs if job.state is State.SUCCEEDED}
    for job in jobs:
        for item in stormy.list_artifacts(job.id):
            content = json.loads(b"".join(store.open_range(item.storage, item.name, 0, item.size)))
            assert content == {"job": job.id, "attempt": job.attempt}
    assert integrity(stormy.engine) in ("ok", None)


def integrity(engine: Engine) -> str | None:
    """SQLite's own opinion of its file after all the killing."""
    if engine.dialect.name != "sqlite":
        return None
    with engine.connect() as connection:
        return str(connection.execute(text("PRAGMA integrity_check")).scalar_one())
