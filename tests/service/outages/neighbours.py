"""A service whose broker, database and artifact store each stand behind a proxy, and what may befall them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tests import servers
from tests.proxy import Proxy, proxy
from tests.service.harness import Service, running, wait_for
from tests.tiny import write_tiny_llama

NEIGHBOURS = ("broker", "postgres", "s3")
#: `killed` and `frozen` happen to the server, the others to what lies between (see `tests.proxy`).
FAULTS = ("killed", "frozen", "refuse", "stall", "half-open", "slow")
#: Where in a job's life the fault begins; at the last three, a second before the upload, the commit, the ack.
MOMENTS = ("claim", "engine", "publication", "commit", "acknowledgement")
#: When the neighbour is back, a fresh job has ended after so long and an undisturbed job's time.
NEXT_JOB_SECONDS = 30.0
#: Every request is answered within this, whatever is away.
ANSWER_SECONDS = 10.0


@dataclass
class Neighbourhood:
    """The service, its neighbours, and how long an undisturbed job takes here."""

    service: Service
    proxies: dict[str, Proxy]
    postgres: servers.Postgres
    valkey: servers.Valkey
    s3: servers.S3
    usual_seconds: float = 0.0

    @contextmanager
    def away(self, neighbour: str, fault: str) -> Iterator[None]:
        """The fault, for as long as the context lasts."""
        if fault == "killed" and neighbour == "s3":
            fault = "refuse"  # the stand-in keeps its objects in memory: killed in truth, it would lose them
        if fault == "killed":
            server = self.postgres if neighbour == "postgres" else self.valkey
            # Postgres' way of crashing: killed by signal 9, its children would go on for a while
            server.stop(signal.SIGQUIT if neighbour == "postgres" else signal.SIGKILL)
            try:
                yield
            finally:
                server.start()
        elif fault == "frozen":
            with _frozen(self._pids(neighbour)):
                yield
        else:
            with self.proxies[neighbour].being(fault):  # type: ignore[arg-type]
                yield

    def _pids(self, neighbour: str) -> list[int]:
        process = {"postgres": self.postgres.process, "broker": self.valkey.process}.get(neighbour)
        top = self.s3.pid if process is None else process.pid
        return [top, *(child.pid for child in psutil.Process(top).children(recursive=True))]

    def logged(self, event: str) -> int:
        """How often the worker logged it."""
        return (self.service.data_dir / "logs" / "worker.log").read_text().count(event)

    def post(self, labels: dict[str, str] | None = None) -> str:
        """A prune job, which publishes files."""
        return self.service.post_job(labels=labels or {})

    def reach(self, moment: str, length: float) -> str:
        """A job that is at the moment where a fault of this length shall begin."""
        if moment in {"publication", "commit", "acknowledgement"}:
            hook, event = {
                "publication": ("test.seal", "hook.about_to_seal"),
                "commit": ("test.complete", "hook.hold"),
                "acknowledgement": ("test.acknowledge", "hook.about_to_acknowledge"),
            }[moment]
            before = self.logged(event)
            job_id = self.post({hook: "hold:1"})
            wait_for(lambda: self.logged(event) > before, f"the worker to say {event}")
            return job_id
        hold = {"claim": 0.0, "engine": length + 1.0}[moment]
        job_id = self.post({"test.engine": f"hold:{hold:g}"} if hold else None)
        if hold:
            self.service.wait_state(job_id, "running")
        return job_id


@contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def neighbourhood(home: Path) -> Iterator[Neighbourhood]:
    """Everything started and ready, gone at the end."""
    data_dir = home / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres_server())
        valkey = stack.enter_context(servers.valkey())
        s3 = stack.enter_context(servers.s3_server())
        upstreams = {
            "broker": valkey.socket,
            "postgres": postgres.home / ".s.PGSQL.5432",
            "s3": ("127.0.0.1", urlsplit(s3.endpoint).port or 0),
        }
        proxies = {name: stack.enter_context(proxy(there)) for name, there in upstreams.items()}
        service = stack.enter_context(running(data_dir, **_environment(proxies, s3)))
        made = Neighbourhood(service, proxies, postgres, valkey, s3)
        made.usual_seconds = _undisturbed(made)
        yield made


def _environment(proxies: dict[str, Proxy], s3: servers.S3) -> dict[str, str]:
    return {
        "OPTIPFAIR_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{proxies['postgres'].port}/postgres",
        "OPTIPFAIR_BROKER_URL": f"redis://127.0.0.1:{proxies['broker'].port}/0",
        "OPTIPFAIR_ARTIFACTS_URL": f"s3://{s3.bucket}/prefix",
        "OPTIPFAIR_ARTIFACTS_S3_ENDPOINT": f"http://127.0.0.1:{proxies['s3'].port}",
        "OPTIPFAIR_ARTIFACTS_S3_ACCESS_KEY": s3.access_key,
        "OPTIPFAIR_ARTIFACTS_S3_SECRET_KEY": s3.secret_key,
        "OPTIPFAIR_LEASE_SECONDS": "45",
        "OPTIPFAIR_HEARTBEAT_SECONDS": "5",
        "OPTIPFAIR_REPUBLISH_SECONDS": "10",
    }


def _undisturbed(made: Neighbourhood) -> float:
    """The second job's time: the first warms up."""
    made.service.wait_end(made.post())
    began = time.monotonic()
    made.service.wait_end(made.post())
    return time.monotonic() - began


@dataclass
class Asking(threading.Thread):
    """A caller that goes on asking during a fault, and what it was told."""

    service: Service
    path: str
    statuses: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        """Ask for the job and for liveness in turn."""
        headers = {"Authorization": self.service.client.headers["Authorization"]}
        with httpx.Client(base_url=self.service.url, headers=headers, timeout=60) as client:
            while not self._done.wait(0.2):
                for path in (self.path, "/livez", "/readyz"):
                    self._ask(client, path)

    def _ask(self, client: httpx.Client, path: str) -> None:
        began = time.monotonic()
        try:
            status = str(client.get(path).status_code)
        except httpx.HTTPError as error:
            status = type(error).__name__
        self.slowest = max(self.slowest, time.monotonic() - began)
        name = "livez" if path == "/livez" else "readyz" if path == "/readyz" else "job"
        self.statuses[f"{name} {status}"] = self.statuses.get(f"{name} {status}", 0) + 1

    def end(self) -> None:
        """No more questions; waits for the answer to the last."""
        self._done.set()
        self.join(90)


@dataclass(frozen=True)
class Outcome:
    """What one fault led to."""

    statuses: dict[str, int]
    slowest_answer: float
    next_job_seconds: float
    state: str
    attempts: int

    def wrong(self, usual_seconds: float) -> list[str]:
        """What must not be; empty if all is well."""
        alive = all(name == "livez 200" for name in self.statuses if name.startswith("livez"))
        answered = all(name.split()[1] in {"200", "503"} for name in self.statuses)
        checks = [
            (self.state == "succeeded", f"the disturbed job is {self.state}"),
            (alive, f"liveness: {self.statuses}"),
            (answered, f"answers other than 200 and 503: {self.statuses}"),
            (self.slowest_answer <= ANSWER_SECONDS, f"an answer took {self.slowest_answer:.1f} s"),
            (
                self.next_job_seconds <= NEXT_JOB_SECONDS + usual_seconds,
                f"the next job ended after {self.next_job_seconds:.1f} s",
            ),
        ]
        return [reason for well, reason in checks if not well]


def suffer(
    there: Neighbourhood,
    neighbour: str,
    fault: str,
    moment: str,
    length: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """One fault at one moment of a job; then a fresh job, and the end of the disturbed one."""
    service = there.service
    job_id = there.reach(moment, length)
    asking = Asking(service, f"/v1/jobs/{job_id}")
    with there.away(neighbour, fault):
        asking.start()
        sleep(length)
    began = time.monotonic()
    asking.end()
    fresh = there.post()
    service.wait_end(fresh)
    seconds = time.monotonic() - began
    job = service.wait_end(job_id)
    assert len(service.events(job_id, "succeeded")) <= 1
    return Outcome(asking.statuses, asking.slowest, seconds, str(job["state"]), int(job["attempt"]))
