"""The same service on Postgres, another broker and S3, with two workers that share nothing else.

Each worker has a data folder of its own, and a model that the other lacks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from jobs.artifacts import make_store
from jobs.settings import Settings
from tests import servers
from tests.tiny import write_tiny_llama

from .harness import Service, environment, gone, running, wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Elsewhere:
    """A service whose state is all elsewhere, and a second worker with a data folder of its own."""

    service: Service
    worker: subprocess.Popen[bytes]
    settings: Settings


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
        for name, own in (("one", "left"), ("two", "right")):
            for model in ("tiny", own):
                write_tiny_llama(home / name / "models" / model)
        service = stack.enter_context(running(home / "one", **shared))
        argv = [sys.executable, "-m", "service.cli", "worker", "--data-dir", str(home / "two")]
        with (home / "two.log").open("wb") as log:
            worker = subprocess.Popen(argv, env=environment(**shared), stdout=log, stderr=log)
        stack.callback(_end, worker)
        wait_for(lambda: (home / "two.log").read_text().count("worker.ready"), "the second worker")
        settings = {name.removeprefix("OPTIPFAIR_").lower(): value for name, value in shared.items()}
        yield Elsewhere(service, worker, Settings(**settings))  # type: ignore[arg-type]


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait(60)


def workers_of(service: Service, jobs: Iterable[str]) -> set[str]:
    """The workers that began these jobs, each of which has succeeded."""
    workers = set()
    for job_id in jobs:
        job = service.wait_end(job_id)
        assert job["state"] == "succeeded", job["error"]
        workers |= {event["data"]["worker"] for event in service.events(job_id, "started")}
    return workers


def named(name: str) -> dict[str, Any]:
    return {"model": {"source": "local", "name": name}}


def archive_of(service: Service, job_id: str) -> tuple[bytes, dict[str, Any]]:
    """All files as one, and the link that they came by."""
    link = service.client.post(f"/v1/jobs/{job_id}/artifacts/*/links", json={}).json()
    content = httpx.get(link["url"], timeout=30).content
    assert hashlib.sha256(content).hexdigest() == link["sha256"]
    return content, link


def test_each_job_is_done_by_the_worker_that_has_its_model(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    jobs = {name: [service.post_job(spec=named(name)) for _ in range(2)] for name in ("left", "right")}
    left, right = (workers_of(service, ids) for ids in jobs.values())
    assert len(left) == len(right) == 1
    assert left != right


def test_a_checkpoint_goes_through_s3_and_comes_back_whole(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    job_id = service.post_job()
    assert service.wait_end(job_id)["state"] == "succeeded"
    files = service.download(job_id)
    content, link = archive_of(service, job_id)
    part = httpx.get(link["url"], headers={"Range": "bytes=100-4000"}, timeout=30)
    assert (part.status_code, part.content) == (206, content[100:4001])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        packed = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar if member.isfile()}
        assert {name: file.read() for name, file in packed.items() if file is not None} == files
    assert json.loads(files["metrics.json"])["pruned_parameters"] > 0
    assert not (service.data_dir / "service.db").exists()
    assert not list((service.data_dir / "artifacts").glob("*/*"))
    assert not (service.data_dir / "broker" / "appendonlydir").exists()


def test_the_workers_keep_nothing_and_a_deletion_empties_the_store(elsewhere: Elsewhere) -> None:
    service, store = elsewhere.service, make_store(elsewhere.settings)
    job_id = service.post_job()
    service.wait_end(job_id)
    assert job_id in {folder.job_id for folder in store.folders()}
    left = [path for path in service.data_dir.parent.rglob("*") if job_id in str(path) and path.is_file()]
    assert left == []
    assert service.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert job_id not in {folder.job_id for folder in store.folders()}


def test_equal_work_is_found_again(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    first = service.post_job()
    service.wait_end(first)
    again = service.post_job(reuse=True, labels={"run": "again"})
    assert again != first
    assert service.job(again)["state"] == "succeeded"
    archive_of(service, again)


def test_another_machines_worker_prunes_a_result_further(elsewhere: Elsewhere) -> None:
    service = elsewhere.service
    first = service.post_job()
    service.wait_end(first)
    blockers = [service.post_job(labels={"test.engine": "hold:3"}) for _ in range(2)]
    seconds = [service.post_job(spec={"model": {"source": "job", "job_id": first}}) for _ in range(4)]
    assert len(workers_of(service, (*blockers, *seconds))) == 2  # both took part


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
