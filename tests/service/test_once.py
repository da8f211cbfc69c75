"""A worker that takes one job and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llama

from .harness import END_SECONDS, environment, running, wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]


def worker_once(data_dir: Path, wait: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.cli", "worker", "--data-dir", str(data_dir)]
    options = ["--queues", "cpu", "--once", "--wait", str(wait)]
    env = environment(OPTIPFAIR_SLEEPING_QUEUES="cpu")
    return subprocess.Popen([*command, *options], env=env, stdout=subprocess.DEVNULL)


def test_it_takes_one_job_and_ends(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    asleep = {"OPTIPFAIR_WORKER_QUEUES": "short", "OPTIPFAIR_SLEEPING_QUEUES": "cpu"}
    with running(data_dir, **asleep) as service:
        worker = worker_once(data_dir, 200)
        try:
            wait_for(lambda: "cpu" in str(service.get("/v1/models")), "the worker to beat")
            spec = {"evaluation": {"texts": ["a text"]}}  # not a short job
            first, second = service.post_job(spec=spec), service.post_job(spec=spec)
            service.wait_end(first)
            assert worker.wait(END_SECONDS) == 0
        finally:
            worker.kill()
        assert service.job(second)["state"] == "queued"
        # no worker of that queue lives, but its like can be started
        third = service.post_job(spec=spec)
        assert service.job(third)["queue"] == "cpu"
        service.client.post(f"/v1/jobs/{third}/cancel")
        assert 'optipfair_queue_length{queue="cpu"} 1.0' in service.client.get("/metrics").text
