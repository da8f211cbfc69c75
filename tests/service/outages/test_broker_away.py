"""The broker is away when a job ends: the worker can't say that it is done, and goes on taking jobs after it.

`serve` is stopped meanwhile, so that it does not start the broker again before the job has ended. A worker
ends a message by acknowledging it, or, rarely, by rejecting it, which here a test hook makes it do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests import servers
from tests.service.harness import Service, running, wait_for
from tests.tiny import write_tiny_llama

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

#: After the broker is back, a fresh job is taken by then, unless its worker stands still.
NEXT_JOB_SECONDS = 30.0
#: How a message is made to end, by labels, and what the worker says when it can't.
ENDINGS = {"ack": ({}, "Couldn't ack"), "reject": ({"test.acknowledge": "reject:0"}, "Couldn't reject")}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.outage)])
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


def killed(service: Service, wait_for_end: Callable[[], None], wait_for_failure: Callable[[], None]) -> None:
    """The broker is killed before the job's end and back after it."""
    broker = service.pid_of("broker")
    with stopped(service.process.pid):
        os.kill(broker, signal.SIGKILL)
        wait_for_end()
        wait_for_failure()


def frozen_then_killed(
    service: Service, wait_for_end: Callable[[], None], wait_for_failure: Callable[[], None]
) -> None:
    """It is frozen before the job's end and killed after it: what was sent to it is lost."""
    broker = service.pid_of("broker")
    with stopped(service.process.pid):
        os.kill(broker, signal.SIGSTOP)
        wait_for_end()
        os.kill(broker, signal.SIGKILL)
        wait_for_failure()


def frozen_for_long(
    service: Service, wait_for_end: Callable[[], None], wait_for_failure: Callable[[], None]
) -> None:
    """It is frozen for longer than the worker waits for its answer, and then goes on."""
    with stopped(service.process.pid), stopped(service.pid_of("broker")):
        wait_for_end()
        wait_for_failure()


def frozen_for_a_moment(
    service: Service, wait_for_end: Callable[[], None], _wait_for_failure: Callable[[], None]
) -> None:
    """It is frozen around the job's end: the worker may be told late that all is well."""
    with stopped(service.process.pid), stopped(service.pid_of("broker")):
        wait_for_end()


@pytest.mark.parametrize("ending", list(ENDINGS))
@pytest.mark.parametrize(
    "outage",
    [
        killed,
        pytest.param(frozen_then_killed, marks=pytest.mark.outage),
        pytest.param(frozen_for_long, marks=pytest.mark.outage),
        pytest.param(frozen_for_a_moment, marks=pytest.mark.outage),
    ],
)
def test_the_next_job_is_taken_after(service: Service, outage: Callable[..., None], ending: str) -> None:
    labels, said = ENDINGS[ending]
    log = service.data_dir / "logs" / "worker.log"
    before = log.read_text().count(said)
    job_id = service.post_job(labels={"test.engine": "hold:3", **labels})
    service.wait_state(job_id, "running")
    outage(
        service,
        lambda: service.wait_state(job_id, "succeeded"),
        lambda: wait_for(lambda: log.read_text().count(said) > before, f"the worker to say {said!r}"),
    )
    fresh = service.post_job("analyze")
    service.wait_state(fresh, "running", "succeeded", seconds=NEXT_JOB_SECONDS)
    assert service.wait_end(fresh)["state"] == "succeeded"
    job = service.job(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 1)
    assert len(service.events(job_id, "succeeded")) == 1
