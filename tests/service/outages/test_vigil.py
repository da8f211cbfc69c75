"""A worker whose consumer has stopped taking jobs says so, connects anew, and if that does not help, ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.harness import Service, running, wait_for
from tests.tiny import write_tiny_llama

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

STALL_SECONDS = "2"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("vigil") / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with running(data_dir, OPTIPFAIR_STALL_SECONDS=STALL_SECONDS) as started:
        yield started


def worker_log(service: Service) -> str:
    return (service.data_dir / "logs" / "worker.log").read_text()


def break_consumer(service: Service, how: str) -> None:
    """A job after whose end the consumer is broken."""
    job = service.wait_end(service.post_job("analyze", labels={"test.consumer": how}))
    assert job["state"] == "succeeded"


def readiness(service: Service) -> str:
    return str(service.client.get("/readyz").json()["checks"]["worker"])


def test_a_consumer_that_asks_for_nothing_connects_anew(service: Service) -> None:
    worker = service.pid_of("worker")
    break_consumer(service, "deaf")
    fresh = service.post_job("analyze")
    assert service.wait_end(fresh, 60)["state"] == "succeeded"
    assert service.pid_of("worker") == worker
    log = worker_log(service)
    assert log.count("worker.stalled") == 1
    wait_for(lambda: "worker.recovered" in worker_log(service), "the worker to say that it is well")


def test_one_whose_event_loop_is_blocked_ends_and_is_started_again(service: Service) -> None:
    worker = service.pid_of("worker")
    break_consumer(service, "blocked")
    fresh = service.post_job("analyze")
    wait_for(lambda: readiness(service) == "no worker takes jobs", "readiness to name it", 60)
    assert "optipfair_worker_stalled 1.0" in service.client.get("/metrics").text
    assert service.wait_end(fresh, 120)["state"] == "succeeded"
    assert service.pid_of("worker") != worker
    assert "worker ended unexpectedly (exit code 70)" in service.said
    wait_for(lambda: readiness(service) == "ok", "the new worker to be well")
