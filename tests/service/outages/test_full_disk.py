"""A full artifact store fails one job clearly, and the service goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.harness import Service, running, wait_for
from tests.service.outages.disks import NeedsRootError, fill, mounted
from tests.tiny import write_tiny_llama

pytestmark = [pytest.mark.outage, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
DISK_BYTES = 2 * 1024 * 1024
#: Room for everything that a service writes while it runs some small jobs.
WHOLE_BYTES = 32 * 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes (needs root on Linux)."""
    yield from _mounted(tmp_path / "disk", DISK_BYTES)


@pytest.fixture
def whole_disk(tmp_path: Path) -> Iterator[Path]:
    """One for the whole data folder."""
    yield from _mounted(tmp_path / "whole", WHOLE_BYTES)


def _mounted(disk: Path, size: int) -> Iterator[Path]:
    try:
        with mounted(disk, size):
            yield disk
    except NeedsRootError as error:
        pytest.skip(str(error))


def test_a_job_that_fills_the_disk_fails_and_the_next_one_succeeds(tmp_path: Path, small_disk: Path) -> None:
    data_dir = tmp_path / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    environ = {"OPTIPFAIR_ARTIFACTS_URL": str(small_disk / "artifacts")}
    with running(data_dir, **environ) as service:
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (DISK_BYTES - 72 * 1024))
        during = service.wait_end(service.post_job())  # passes the check before its start, fills up later
        assert (during["state"], during["attempt"]) == ("failed", 1), during
        assert during["error"]["code"] == "storage_full"
        filler.write_bytes(b"x" * (DISK_BYTES - 20 * 1024))
        before = service.wait_end(service.post_job())
        assert before["error"]["code"] == "storage_full"
        filler.unlink()
        wait_for(lambda: not list((small_disk / "artifacts").glob("*/*")), "the files to be removed")
        check_goes_on(service)


def test_a_full_disk_under_everything_is_named_and_heals(whole_disk: Path) -> None:
    """The database, the broker's file, artifacts and logs: nothing can be written any more."""
    data_dir = whole_disk / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with running(data_dir) as service:
        check_goes_on(service)
        filler = whole_disk / "filler"
        fill(filler)
        answer = wait_for(lambda: _refused(service), "a job that can't be stored")
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_full"), answer.text
        ready = service.client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["disk"]) == (503, "full")
        assert service.client.get("/livez").status_code == 200
        assert service.client.get("/v1/jobs").status_code == 200
        filler.unlink()
        check_goes_on(service)
        wait_for(lambda: service.client.get("/readyz").status_code == 200, "readiness")


def _refused(service: Service) -> httpx.Response | None:
    """SQLite has some room of its own: a job that is stored there says nothing."""
    spec = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 25}
    spec["calibration"] = {"texts": ["a" * 1000] * 200}
    answer = service.client.post("/v1/jobs", json={"kind": "prune", "spec": spec}, timeout=30)
    return None if answer.status_code == 202 else answer


def check_goes_on(service: Service) -> None:
    after = service.wait_end(service.post_job())
    assert after["state"] == "succeeded", after["error"]


def test_a_model_that_is_cut_off_while_its_job_waits_fails_clearly(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    weights = write_tiny_llama(data_dir / "models" / "tiny") / "model.safetensors"
    whole = weights.read_bytes()
    with running(data_dir) as service:
        job_id = service.post_job(labels={"test.engine": "hold:2"})
        service.wait_state(job_id, "running")
        weights.write_bytes(whole[: len(whole) // 2])
        job = service.wait_end(job_id)
        assert (job["state"], job["attempt"]) == ("failed", 1)
        assert job["error"]["code"] in {"model_truncated", "model_unreadable"}, job["error"]
        assert str(data_dir) not in job["error"]["message"]
        weights.write_bytes(whole)
        wait_for(lambda: _usable(service), "the repaired model to be seen")
        check_goes_on(service)


def _usable(service: Service) -> bool:
    body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
    answer = service.client.post("/v1/jobs", json=body)
    return answer.status_code == 202
