"""Real processes of a real service are killed and frozen: every job still ends once, nothing is left over."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

import psutil
import pytest

from tests.service.harness import END_SECONDS, Service, gone, wait_for

pytestmark = [pytest.mark.outage, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


def start_held(service: Service, seconds: float = 60.0, **labels: str) -> tuple[str, int]:
    """A job whose engine is held in its first attempt; its id and the engine's process."""
    job_id = service.post_job(labels={"test.engine": f"hold:{seconds:g}", **labels})
    service.wait_state(job_id, "running")
    engine: int = wait_for(service.engine_pid, "the engine process")
    return job_id, engine


def outcomes(service: Service, job_id: str) -> list[str]:
    attempts = service.get(f"/v1/jobs/{job_id}/attempts")["items"]
    return [attempt["outcome"] for attempt in sorted(attempts, key=lambda item: item["number"])]


def check_published_once(service: Service, job_id: str, attempt: int) -> dict[str, Any]:
    job = service.job(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", attempt), job["error"]
    assert len(service.events(job_id, "succeeded")) == 1
    assert service.download(job_id)
    wait_for(lambda: service.stored_folders(job_id) == [f"{job_id}/{attempt}"], "stray files to go")
    return job


def test_a_worker_killed_in_mid_job_costs_one_attempt(service: Service) -> None:
    job_id, engine = start_held(service, 8)
    worker = service.pid_of("worker")
    family = [engine, worker, *(child.pid for child in psutil.Process(worker).children(recursive=True))]
    os.kill(worker, signal.SIGKILL)
    assert gone(family, 5)
    service.wait_end(job_id)
    check_published_once(service, job_id, 2)
    assert outcomes(service, job_id) == ["lost", "succeeded"]
    assert "worker ended unexpectedly (signal 9)" in service.said


def test_an_engine_killed_in_mid_job_is_told_apart_from_an_error(service: Service) -> None:
    job_id = service.post_job(labels={"test.engine": "die-once"})
    service.wait_end(job_id)
    check_published_once(service, job_id, 2)
    (lost,) = service.events(job_id, "lost")
    assert lost["data"]["code"] == "engine_killed"


def test_a_job_that_always_kills_its_engine_is_given_up(service: Service) -> None:
    job_id = service.post_job(labels={"test.engine": "die"})
    job = service.wait_end(job_id)
    assert (job["state"], job["attempt"]) == ("failed", job["max_attempts"])
    assert job["error"]["code"] == "attempts_exhausted"
    assert outcomes(service, job_id) == ["lost"] * job["max_attempts"]
    wait_for(lambda: service.stored_folders(job_id) == [], "stray files to go")


def test_a_broker_that_comes_back_empty_loses_no_job(service: Service) -> None:
    blocker, _engine = start_held(service, 6)
    waiting = [service.post_job("analyze") for _ in range(3)]
    broker = service.pid_of("broker")
    shutil.rmtree(service.data_dir / "broker" / "appendonlydir")
    os.kill(broker, signal.SIGKILL)
    for job_id in (blocker, *waiting):
        assert service.wait_end(job_id)["state"] == "succeeded"
        check_published_once(service, job_id, 1)


def test_an_api_that_is_killed_comes_back_and_loses_no_job(service: Service) -> None:
    blocker, _engine = start_held(service, 4)
    jobs = [blocker]
    for _ in range(2):
        jobs.append(service.post_job("analyze"))
        os.kill(service.pid_of("api"), signal.SIGKILL)
    for job_id in jobs:
        assert service.wait_end(job_id)["state"] == "succeeded"
        check_published_once(service, job_id, 1)


def test_a_worker_frozen_past_its_lease_publishes_nothing(service: Service) -> None:
    job_id = service.post_job(labels={"test.complete": "hold:4"})
    log = service.data_dir / "logs" / "worker.log"
    held = log.read_text().count("hook.hold")
    wait_for(lambda: log.read_text().count("hook.hold") > held, "the attempt to be done but for its commit")
    worker = service.pid_of("worker")
    rejected = log.read_text().count("attempt.stale_rejected")
    os.kill(worker, signal.SIGSTOP)
    try:
        service.wait_state(job_id, "queued", seconds=END_SECONDS)
        assert service.get(f"/v1/jobs/{job_id}/artifacts") == []
    finally:
        os.kill(worker, signal.SIGCONT)
    service.wait_end(job_id)
    check_published_once(service, job_id, 2)
    assert outcomes(service, job_id) == ["lost", "succeeded"]
    assert log.read_text().count("attempt.stale_rejected") == rejected + 1
