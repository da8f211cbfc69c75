"""A database that went away and came back is used again, without a restart of ours."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

import migrations
from jobs.database import connect
from jobs.repository import Repository
from jobs.settings import Settings
from jobs.states import State
from tests.jobs.conftest import TENANT, prune_request
from tests.servers import postgres_server

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_work_goes_on_after_a_restart_of_the_database(tmp_path: Path, how: signal.Signals) -> None:
    with postgres_server() as server:
        migrations.upgrade(server.url)
        repository = Repository(connect(server.url), Settings(data_dir=tmp_path))
        repository.ensure_tenant(TENANT)
        job = repository.create_job(TENANT, prune_request(), queue="cpu")
        repository.claim(job.id, "w")
        server.stop(how)
        with pytest.raises(OperationalError):
            repository.heartbeat(job.id, 1)
        with pytest.raises(OperationalError):
            repository.get_job(job.id)
        server.start()
        assert repository.heartbeat(job.id, 1) is State.RUNNING
        assert repository.get_job(job.id).state is State.RUNNING
        state = repository.mark_succeeded(
            job.id, 1, artifacts=[], archive=None, metrics={}, publish=lambda: None
        )
        assert state is State.SUCCEEDED
        repository.engine.dispose()
