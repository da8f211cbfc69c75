"""The broker is away when a job ends: the worker can't say that it is done, and goes on taking jobs after it.

`serve` is stopped meanwhile, so that it does not start the broker again before the job has ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests import servers
from tests.service.harness import Service, running, wait_for
from tests.tiny import write_tiny_llama

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

#: After the broker is back, a fresh job has ended by then, unless its worker stands still.
NEXT_JOB_SECONDS = 30.0


#: The worker's side of the broker is the same on both; on Postgres it is seen by `make test-outages`.
DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.outage)]


@pytest.fixture(scope="module", params=DATABASES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("away") / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with ExitStack() as stack:
        where = {}
        if request.param == "postgres":
            where["OPTIPFAIR_DATABASE_URL"] = stack.enter_context(servers.postgres_url())
        yield stack.enter_context(running(data_dir, **where))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process is frozen meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def start_job(service: Service) -> str:
    """A job that runs for some seconds more."""
    job_id = service.post_job(labels={"test.engine": "hold:3"})
    service.wait_state(job_id, "running")
    return job_id


def failed_acknowledgements(service: Service) -> int:
    return (service.data_dir / "logs" / "worker.log").read_text().count("Couldn't ack")


def wait_for_failed_acknowledgement(service: Service, before: int) -> None:
    """Only with it has the outage met what it is to meet."""
    wait_for(lambda: failed_acknowledgements(service) > before, "the worker to say that it could not ack")


def check_goes_on(service: Service, job_id: str) -> None:
    """The job ended once, and a fresh one is taken."""
    fresh = service.post_job()
    assert service.wait_end(fresh, NEXT_JOB_SECONDS)["state"] == "succeeded"
    assert (service.job(job_id)["state"], service.job(job_id)["attempt"]) == ("succeeded", 1)
    assert len(service.events(job_id, "succeeded")) == 1


def test_a_broker_killed_before_a_jobs_end_and_back_after_it(service: Service) -> None:
    before = failed_acknowledgements(service)
    job_id = start_job(service)
    broker = service.pid_of("broker")
    with stopped(service.process.pid):
        os.kill(broker, signal.SIGKILL)
        service.wait_state(job_id, "succeeded")
        wait_for_failed_acknowledgement(service, before)
    check_goes_on(service, job_id)


def test_a_broker_frozen_before_a_jobs_end_and_killed_after_it(service: Service) -> None:
    before = failed_acknowledgements(service)
    job_id = start_job(service)
    broker = service.pid_of("broker")
    with stopped(service.process.pid):
        os.kill(broker, signal.SIGSTOP)
        service.wait_state(job_id, "succeeded")
        os.kill(broker, signal.SIGKILL)
        wait_for_failed_acknowledgement(service, before)
    check_goes_on(service, job_id)


def test_a_broker_frozen_before_a_jobs_end_and_awake_after_it(service: Service) -> None:
    job_id = start_job(service)
    with stopped(service.process.pid), stopped(service.pid_of("broker")):
        service.wait_state(job_id, "succeeded")
    check_goes_on(service, job_id)
