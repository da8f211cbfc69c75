"""Uploads into a real service: a model that a worker then prunes, and a large file in constant memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from api.uploads.receiving import PART_BYTES
from service.client import OptipfairClient
from tests.proxy import proxy
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
PRIVATE_BYTES = 300 * 1024 * 1024
LINES = b"a line of text that is sixty-four bytes long with its new line.\n" * (1024 * 1024 // 64)


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


def test_a_large_file_that_is_cut_three_times_passes_through_in_constant_memory(
    service: Service, tmp_path: Path
) -> None:
    """`benchmarks/service/uploads.py` does the same with 2 GB, and with a wrong hash."""
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        for _ in range(LARGE_BYTES // len(LINES)):
            file.write(LINES)
    api = service.pid_of("api")
    peaks, cuts, places = [private_bytes(api)], [LARGE_BYTES * quarter // 4 for quarter in (1, 2, 3)], [0]

    def watch(_name: str, count: int, _size: int) -> None:
        if count % (16 * 1024 * 1024) == 0:
            peaks.append(private_bytes(api))
        places.append(count)
        if cuts and count >= cuts[0]:
            cuts.pop(0)
            line.be("refuse")  # what is connected is reset
            line.be("pass")

    port = int(service.url.rpartition(":")[2])
    with (
        proxy(("127.0.0.1", port)) as line,
        OptipfairClient(f"http://127.0.0.1:{line.port}", key_of(service), timeout=600) as client,
    ):
        done = client.upload("calibration", "large", path, on_bytes=watch)
        peaks.append(private_bytes(api))
        assert (done["state"], cuts) == ("complete", [])
        back = [before - now for before, now in pairwise(places) if now < before]
        # it went on where it was, but for the part under way, and once more where that was stored meanwhile
        assert 3 <= len(back) <= 6 and max(back) < PART_BYTES + 16 * 1024 * 1024
        with path.open("rb") as file:
            assert done["files"][0]["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
        print(f"peak of the API: {max(peaks) / 1e6:.0f} MB private, {max(peaks) - peaks[0]} more than before")
        assert max(peaks) - peaks[0] < GROWTH_BYTES and max(peaks) < PRIVATE_BYTES
        again = client.upload("calibration", "again", path)  # nothing is sent
        assert {file["state"] for file in again["files"]} == {"here"}
