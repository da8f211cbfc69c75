"""Rows that change often are written in their place on Postgres."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from jobs.repository import Repository
from jobs.rows import Job, Progress

Create = Callable[..., Job]


def updates(engine: Engine) -> tuple[int, int]:
    """How many updates of jobs there were, and how many of them in place."""
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'"
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        connection.commit()
        row = connection.execute(text(query)).one()
        return row[0], row[1]


@pytest.mark.server
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_beats_and_progress_are_written_in_place(
    repository: Repository, create: Create, engine: Engine
) -> None:
    jobs = [create(labels={"team": "nlp"}) for _ in range(4)]
    for job in jobs:
        repository.claim(job.id, "w")
    engine.dispose()  # a session that ends reports what it has counted
    before = updates(engine)
    for step in range(25):
        for job in jobs:
            progress = Progress(step / 25, "calibrate", f"layer {step}", 3.0)
            repository.add_event(job.id, 1, "progress", {"done": step}, progress=progress)
            repository.heartbeat(job.id, 1)
    engine.dispose()
    after = updates(engine)
    assert after[0] - before[0] == 200
    assert after[1] - before[1] >= 180
