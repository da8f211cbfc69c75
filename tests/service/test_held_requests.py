"""Long polls and streams that are held when the HTTP process is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import migrations
from jobs.database import connect
from jobs.repository import Repository
from jobs.settings import Settings
from jobs.signing.keys import generate_key
from jobs.signing.secret import ensure_secret, load_secrets
from jobs.specs import parse_request

from .harness import wait_for

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]
WAITING = "optipfair_waiting_requests "


@dataclass
class Api:
    """An HTTP process alone, without broker and worker, with three queued jobs."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    jobs: list[str]

    def waited_for(self) -> int:
        """How many jobs held requests wait for."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((int(float(x.removeprefix(WAITING))) for x in lines if x.startswith(WAITING)), 0)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(data_dir=tmp_path, port=port)
    migrations.upgrade(settings.database_url)
    ensure_secret(settings.secret_file)
    key = generate_key(load_secrets(settings.secret_file))
    repository = Repository(connect(settings.database_url), settings)
    repository.create_key(
        "acme", key_hash=key.hash, hint=key.hint, scopes=["jobs:read", "jobs:write", "admin"]
    )
    spec = {"model": {"source": "local", "name": "tiny"}}
    request = parse_request({"kind": "analyze", "spec": spec})
    jobs = [repository.create_job("acme", request, queue="cpu").id for _ in range(3)]
    environ = {**os.environ, "OPTIPFAIR_DATA_DIR": str(tmp_path), "OPTIPFAIR_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-m", "service.cli", "api"], env=environ)
    headers = {"Authorization": f"Bearer {key.plain}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            yield Api(process, client, jobs)
    finally:
        process.kill()
        process.wait()


def alive(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_each_gets_its_answer_before_the_process_ends(api: Api) -> None:
    wait_for(lambda: alive(api.client), "the HTTP process", 120)
    known, unknown, streamed = (f"/v1/jobs/{job}" for job in api.jobs)
    tag = api.client.get(known).headers["ETag"]
    with ThreadPoolExecutor(3) as pool:
        held = {"Prefer": "wait=30"}
        unchanged = pool.submit(api.client.get, known, headers={**held, "If-None-Match": tag})
        same = pool.submit(api.client.get, unknown, headers=held)
        stream = pool.submit(api.client.get, f"{streamed}/events", headers={"Accept": "text/event-stream"})
        wait_for(lambda: api.waited_for() == 3, "three held requests", 20)
        api.process.terminate()
        assert unchanged.result().status_code == 304
        assert (same.result().status_code, same.result().json()["state"]) == (200, "queued")
        assert stream.result().text.count("event: queued") == 1  # httpx would raise at a torn stream
    assert api.process.wait(30) == -signal.SIGTERM  # uvicorn raises it again when all is done
