"""A real `optipfair-service serve` in a folder of its own, and a client for it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from click.testing import Result
from typer.testing import CliRunner

from service.cli import app
from tests.tiny import write_tiny_llama

#: Waits are for machines that do other things too; nothing is asserted about time but where a test says so.
START_SECONDS = 300.0
END_SECONDS = 240.0
#: Quick enough for a test, slow enough for a loaded machine: a lease of 6 s survives a stall of some seconds.
QUICK = {
    "OPTIPFAIR_LEASE_SECONDS": "6",
    "OPTIPFAIR_HEARTBEAT_SECONDS": "1",
    "OPTIPFAIR_SWEEP_SECONDS": "1",
    "OPTIPFAIR_REPUBLISH_SECONDS": "3",
    "OPTIPFAIR_GRACE_SECONDS": "1",
    "OPTIPFAIR_MIN_FREE_BYTES": "0",
    "OPTIPFAIR_THREADS": "1",
    "OPTIPFAIR_SHORT_WORKERS": "0",
    "OPTIPFAIR_TEST_HOOKS": "1",
}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = END_SECONDS) -> Any:
    """Poll until the condition holds; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)


@dataclass
class Service:
    """One running service."""

    data_dir: Path
    process: subprocess.Popen[str]
    output: Path
    url: str = ""
    client: httpx.Client = field(default_factory=httpx.Client)

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self.output.read_text()

    def pid_of(self, part: str) -> int:
        """The process id of its broker, worker or api."""
        marks = {"broker": "valkey-server", "worker": "-m worker", "api": "service.api_process"}
        for child in psutil.Process(self.process.pid).children():
            if marks[part] in " ".join(child.cmdline()):
                return child.pid
        raise AssertionError(f"no {part} is running")

    def engine_pid(self) -> int | None:
        """The process of the running attempt: in a group of its own below the worker's fork server."""
        for child in self._descendants():
            with suppress(psutil.Error, ProcessLookupError):
                if "forkserver" in " ".join(child.cmdline()) and os.getpgid(child.pid) == child.pid:
                    return child.pid
        return None

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def post_job(self, kind: str = "prune", spec: dict[str, Any] | None = None, **body: Any) -> str:
        """Create a job; its id. A connection refused is tried again: the HTTP process may be restarting."""
        chosen = {"model": {"source": "local", "name": "tiny"}, **({} if spec is None else spec)}
        if kind == "prune":
            chosen = {"pruning_percentage": 25, **chosen}
        request = {"kind": kind, "spec": chosen, **body}
        answer = wait_for(lambda: self.request("POST", "/v1/jobs", json=request), "POST /v1/jobs", 30)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def request(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        """One request; None if there was no answer or a 5xx."""
        try:
            answer = self.client.request(method, path, timeout=30, **options)
        except httpx.HTTPError:
            return None
        return None if answer.status_code >= 500 else answer

    def get(self, path: str) -> Any:
        """Parsed JSON of a GET, tried again while the HTTP process restarts."""
        answer = wait_for(lambda: self.request("GET", path), f"GET {path}", 30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it stands."""
        return dict(self.get(f"/v1/jobs/{job_id}"))

    def wait_state(self, job_id: str, *states: str, seconds: float = END_SECONDS) -> dict[str, Any]:
        """Wait until the job is in one of the states."""
        what = f"job {job_id} to be {' or '.join(states)}"
        found: dict[str, Any] = wait_for(
            lambda: (job := self.job(job_id))["state"] in states and job, what, seconds
        )
        return found

    def wait_end(self, job_id: str, seconds: float = END_SECONDS) -> dict[str, Any]:
        """Wait until the job has ended."""
        found: dict[str, Any] = wait_for(
            lambda: (job := self.job(job_id))["terminal"] and job, f"the end of job {job_id}", seconds
        )
        return found

    def events(self, job_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """The job's events, of one type if given."""
        items = self.get(f"/v1/jobs/{job_id}/events")["items"]
        return [event for event in items if kind is None or event["type"] == kind]

    def download(self, job_id: str) -> dict[str, bytes]:
        """Every artifact by its signed link, checked against the listing."""
        files: dict[str, bytes] = {}
        for artifact in self.get(f"/v1/jobs/{job_id}/artifacts"):
            link = self.client.post(f"/v1/jobs/{job_id}/artifacts/{artifact['name']}/links", json={}).json()
            content = httpx.get(link["url"], timeout=30).content
            assert hashlib.sha256(content).hexdigest() == artifact["sha256"] == link["sha256"]
            files[artifact["name"]] = content
        return files

    def add_model(self, name: str, *, nan_in: str | None = None) -> None:
        """Write a tiny model beside the others, unless it is there, and wait until it is seen."""
        folder = self.data_dir / "models" / name
        if not folder.exists():
            write_tiny_llama(folder, nan_in=nan_in)
        wait_for(lambda: name in str(self.get("/v1/models")), f"the model {name} to be seen")

    def stored_folders(self, job_id: str = "*") -> list[str]:
        """The artifact store's folders, published or not, of one job or of all."""
        root = self.data_dir / "artifacts"
        return sorted(str(path.relative_to(root)) for path in root.glob(f"{job_id}/*"))

    def pids(self) -> list[int]:
        """Every process that belongs to it."""
        return [self.process.pid, *(child.pid for child in self._descendants())]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Signal the service and wait; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def command(data_dir: Path, *options: str) -> list[str]:
    """The command line of a service on a free port."""
    base = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    return [*base, *options]


def invoke(*arguments: str, **environ: str) -> Result:
    """A command of `optipfair-service` in this process, which spares the start of another.

    Of this shell's settings it sees none.
    """
    without = {name: None for name in os.environ if name.startswith("OPTIPFAIR_")}
    return CliRunner().invoke(app, arguments, env={**without, **QUICK, **environ})


def environment(**more: str) -> dict[str, str]:
    """The environment without settings of this shell, plus the quick times."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("OPTIPFAIR_")}
    return {**clean, "OMP_NUM_THREADS": "1", **QUICK, **more}


@contextmanager
def running(data_dir: Path, *options: str, **environ: str) -> Iterator[Service]:
    """Start a service, wait until it is ready, and make sure that nothing of it is left."""
    data_dir.mkdir(parents=True, exist_ok=True)
    output = data_dir.parent / f"{data_dir.name}.out"
    with output.open("w") as out:
        process = subprocess.Popen(
            command(data_dir, *options), stdout=out, stderr=out, text=True, env=environment(**environ)
        )
    service = Service(data_dir, process, output)
    try:
        wait_ready(service)
        yield service
    finally:
        left = service.pids()
        if process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                service.stop()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        service.client.close()


def wait_ready(service: Service) -> None:
    """Wait for the ready line, and make a client with the admin key."""

    def ready() -> str:
        assert service.process.poll() is None, service.said
        lines = [line for line in service.said.splitlines() if line.startswith("ready: ")]
        return lines[0].split()[1] if lines else ""

    service.url = wait_for(ready, "the ready line", START_SECONDS)
    key = (service.data_dir / "admin.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    service.client = httpx.Client(base_url=service.url, headers=headers)


def gone(pids: list[int], seconds: float) -> bool:
    """Whether none of the processes lives after so long (zombies do not count)."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
