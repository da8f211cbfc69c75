"""The same service on Postgres, another broker and S3, with two workers that share nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests import servers
from tests.tiny import write_tiny_llama

from .harness import Service, environment, gone, running, wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Elsewhere:
    """A service whose state is all elsewhere, and a second worker with a data folder of its own."""

    service: Service
    worker: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    home = tmp_path_factory.mktemp("elsewhere")
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres_url())
        broker = stack.enter_context(servers.valkey())
        s3 = stack.enter_context(servers.s3_server())
        shared = {
            "OPTIPFAIR_DATABASE_URL": postgres,
            "OPTIPFAIR_BROKER_URL": broker.url,
            "OPTIPFAIR_ARTIFACTS_URL": f"s3://{s3.bucket}/jobs",
            "OPTIPFAIR_ARTIFACTS_S3_ENDPOINT": s3.endpoint,
            "OPTIPFAIR_ARTIFACTS_S3_ACCESS_KEY": s3.access_key,
            "OPTIPFAIR_ARTIFACTS_S3_SECRET_KEY": s3.secret_key,
        }
        for name in ("one", "two"):
            write_tiny_llama(home / name / "models" / "tiny")
        service = stack.enter_context(running(home / "one", **shared))
        argv = [sys.executable, "-m", "service.cli", "worker", "--data-dir", str(home / "two")]
        with (home / "two.log").open("wb") as log:
            worker = subprocess.Popen(argv, env=environment(**shared), stdout=log, stderr=log)
        stack.callback(_end, worker)
        wait_for(lambda: (home / "two.log").read_text().count("worker.ready"), "the second worker")
        yield Elsewhere(service, worker)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait(60)


def test_a_checkpoint_goes_through_s3_and_comes_back_whole(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    job_id = service.post_job()
    job = service.wait_end(job_id)
    assert job["state"] == "succeeded", job["error"]
    assert "model.safetensors" in service.download(job_id)
    assert not (service.data_dir / "service.db").exists()
    assert not list((service.data_dir / "artifacts").glob("*/*"))
    assert not (service.data_dir / "broker" / "appendonlydir").exists()


def test_another_machines_worker_prunes_a_result_further(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    first = service.post_job()
    service.wait_end(first)
    blockers = [service.post_job(labels={"test.engine": "hold:3"}) for _ in range(2)]
    seconds = [service.post_job(spec={"model": {"source": "job", "job_id": first}}) for _ in range(4)]
    workers = set()
    for job_id in (*blockers, *seconds):
        job = service.wait_end(job_id)
        assert job["state"] == "succeeded", job["error"]
        workers |= {event["data"]["worker"] for event in service.events(job_id, "started")}
    assert len(workers) == 2  # both took part


def test_a_worker_that_is_told_to_stop_gives_its_job_back(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    jobs = [service.post_job(labels={"test.engine": "hold:15"}) for _ in range(2)]  # one for each worker
    for job_id in jobs:
        service.wait_state(job_id, "running")
    os.kill(elsewhere.worker.pid, signal.SIGTERM)
    assert elsewhere.worker.wait(120) == 0
    assert gone([elsewhere.worker.pid], 5)
    outcomes = []
    for job_id in jobs:
        assert service.wait_end(job_id)["state"] == "succeeded"
        attempts = service.get(f"/v1/jobs/{job_id}/attempts")["items"]
        outcomes.append(sorted(attempt["outcome"] for attempt in attempts))
    assert sorted(outcomes) == [["preempted", "succeeded"], ["succeeded"]]
