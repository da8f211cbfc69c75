"""Uploads into a real service: a model that a worker then prunes, and a large file in constant memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.client import OptipfairClient
from tests.tiny import write_tiny_llama

from .harness import Service, environment

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("service"),
]
LARGE_BYTES = 192 * 1024 * 1024
#: By so much the HTTP process may grow meanwhile.
GROWTH_BYTES = 64 * 1024 * 1024


def key_of(service: Service) -> str:
    return (service.data_dir / "admin.key").read_text().strip()


def test_a_job_file_that_names_folders_is_carried_out(service: Service, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    spec = {"model": {"upload": "./model"}, "pruning_percentage": 25}
    body = {"kind": "prune", "spec": spec, "gates": [{"metric": "percentage_reduction", "min": 1}]}
    (tmp_path / "job.json").write_text(json.dumps(body))
    run = subprocess.run(
        [sys.executable, "-m", "service.cli", "run", str(tmp_path / "job.json")],
        env=environment(OPTIPFAIR_URL=service.url, OPTIPFAIR_KEY=key_of(service)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    job = service.get("/v1/jobs?limit=1")["items"][0]
    assert (job["state"], job["spec"]["model"]["source"]) == ("succeeded", "upload")
    assert job["created_by"]["key_id"]


def private_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_full_info().uss)


def test_a_large_file_passes_through_in_constant_memory(service: Service, tmp_path: Path) -> None:
    line = b"a line of text that is sixty-four bytes long with its new line.\n"
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        for _ in range(LARGE_BYTES // (1024 * 1024)):
            file.write(line * (1024 * 1024 // len(line)))
    api = service.pid_of("api")
    peaks = [private_bytes(api)]

    def watch(_name: str, count: int, _size: int) -> None:
        if count % (16 * 1024 * 1024) == 0:
            peaks.append(private_bytes(api))

    with OptipfairClient(service.url, key_of(service), timeout=600) as client:
        done = client.upload("calibration", "large", path, on_bytes=watch)
        peaks.append(private_bytes(api))
        assert done["state"] == "complete"
        with path.open("rb") as file:
            assert done["files"][0]["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
        print(f"peak of the API: {max(peaks) / 1e6:.0f} MB private, {max(peaks) - peaks[0]} more than before")
        assert max(peaks) - peaks[0] < GROWTH_BYTES
        again = client.upload("calibration", "again", path)  # nothing is sent
        assert {file["state"] for file in again["files"]} == {"here"}
