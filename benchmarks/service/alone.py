"""An HTTP process as `optipfair-service api` starts it, alone: on SQLite, without broker and workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

import migrations
from jobs.database import connect
from jobs.repository import Repository
from jobs.settings import Settings
from jobs.signing.keys import generate_key
from jobs.signing.secret import ensure_secret, load_secrets
from tests.servers import free_port

START_SECONDS = 600


@dataclass(frozen=True)
class Api:
    """The process, a key for it, and what it was started with."""

    settings: Settings
    key: str
    environ: dict[str, str]
    process: psutil.Process

    @property
    def port(self) -> int:
        """Where it listens on the loopback."""
        return self.settings.port

    @property
    def url(self) -> str:
        """The same as a URL."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def alone(folder: Path) -> Iterator[Api]:
    """Start it with everything in a folder, wait until it answers, and end it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = Settings(data_dir=folder, port=free_port(), min_free_bytes=0)
    migrations.upgrade(settings.database_url)
    ensure_secret(settings.secret_file)
    key = generate_key(load_secrets(settings.secret_file))
    engine = connect(settings.database_url)
    scopes = ["jobs:read", "jobs:write"]
    Repository(engine, settings).create_key("bench", key_hash=key.hash, hint=key.hint, scopes=scopes)
    engine.dispose()
    chosen = {"PORT": str(settings.port), "DATA_DIR": str(folder), "LOG_LEVEL": "ERROR"}
    chosen |= {"REQUESTS_PER_MINUTE": "1000000", "MIN_FREE_BYTES": "0"}
    environ = {name: text for name, text in os.environ.items() if not name.startswith("OPTIPFAIR_")}
    environ |= {f"OPTIPFAIR_{name}": text for name, text in chosen.items()}
    process = subprocess.Popen([sys.executable, "-m", "service.api_process"], env=environ)
    try:
        api = Api(settings, key.plain, environ, psutil.Process(process.pid))
        _wait_until_it_answers(api)
        yield api
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_it_answers(api: Api) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{api.url}/livez", timeout=30).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the API does not answer")
