"""deploy/nginx/optipfair.conf before a real API: streams arrive as they come, uploads of any size pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from tests import servers
from tests.api.conftest import FORM, Caller, FakeWorker

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "optipfair.conf"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [pytest.mark.server, pytest.mark.skipif(NGINX is None, reason="nginx is not on this machine")]
MAIN = """
daemon off; master_process off; pid {home}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  include {home}/optipfair.conf;
}}
"""


def _configure(tmp_path: Path, behind: str) -> str:
    """The file with this machine's ports and a certificate; the address before the proxy."""
    before, plain = servers.free_port(), servers.free_port()
    _make_certificate(tmp_path)
    text = re.sub(r"^ *listen \[::\].*\n", "", CONFIGURATION.read_text(), flags=re.MULTILINE)
    for old, new in (
        ("127.0.0.1:8000", behind),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443", f"listen 127.0.0.1:{before}"),
        ("/etc/nginx/tls", str(tmp_path)),
        ("Host $host;", f"Host $host:{before};"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "optipfair.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(MAIN.format(home=tmp_path))
    return f"https://127.0.0.1:{before}"


def _make_certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-keyout", str(folder / "optipfair.key"), "-out", str(folder / "optipfair.crt")]
    subprocess.run([*command, "-days", "2", "-subj", "/CN=x"], check=True, capture_output=True)


@pytest.fixture
def proxied(app: FastAPI, caller: Caller, worker: FakeWorker, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the API that goes through nginx, by TLS."""
    headers = {"Authorization": f"Bearer {caller.key}"}
    with servers.served(app) as behind:
        before = _configure(tmp_path, behind.removeprefix("http://"))
        command = [str(NGINX), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        client = httpx.Client(base_url=before, verify=False, headers=headers, timeout=30)
        try:
            servers.wait_until(lambda: _answers(client), "nginx", process)
            yield client
        finally:
            client.close()
            servers.stop(process)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.HTTPError:
        return False


def test_what_goes_through_the_proxy(proxied: httpx.Client, caller: Caller, worker: FakeWorker) -> None:
    job = caller.create()
    attempt = worker.claim(job["id"])
    # a stream: each event arrives while the next has not happened yet
    stream = {"Accept": "text/event-stream"}
    with proxied.stream("GET", f"/v1/jobs/{job['id']}/events", headers=stream) as response:
        chunks = response.iter_text()
        told = ""
        for step in range(3):
            worker.progress(job["id"], attempt, step / 10, stage=f"stage-{step}")
            deadline = time.monotonic() + 20
            while f"stage-{step}" not in told and time.monotonic() < deadline:
                told += next(chunks)
            assert f"stage-{step}" in told
            assert f"stage-{step + 1}" not in told
    # an upload far larger than the bodies that the proxy takes elsewhere
    content = os.urandom(5_000_000)
    files = [{"name": "a.txt", "size": len(content), "sha256": "0" * 64}]
    upload = proxied.post("/v1/uploads", json={"kind": "calibration", "name": "big", "files": files}).json()
    assert proxied.put(f"/v1/uploads/{upload['id']}/files/a.txt", content=content).status_code == 204
    # too large elsewhere: the API's own words
    refused = proxied.post("/v1/jobs", content=b"[" * 1_500_000)
    assert (refused.status_code, refused.headers["Content-Type"]) == (413, "application/problem+json")
    # the dashboard's forms are of the same origin behind the proxy, too
    address = str(proxied.base_url).rstrip("/")
    login = proxied.post("/ui/login", content=f"key={caller.key}", headers={**FORM, "Origin": address})
    assert login.status_code == 303
