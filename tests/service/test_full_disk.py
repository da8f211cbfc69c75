"""A full artifact store fails one job clearly, and the service goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Service, running, wait_for
from .tiny import write_tiny_llama

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
DISK_BYTES = 2 * 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes (needs root on Linux)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


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
