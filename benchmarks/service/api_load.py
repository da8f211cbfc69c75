"""Requests a second of the API beside a bare Starlette response, on the same server in one run.

    python benchmarks/service/api_load.py  # SQLite, 1 000 and 100 000 jobs
    python benchmarks/service/api_load.py --database-url postgresql://…  # an empty Postgres

One uvicorn worker serves both the API (authentication, rate limit and access log on) and `/bare`, which
answers two bytes from plain Starlette. This process is the client: kept connections, one request in flight on
each. Rounds alternate between few and many jobs, and with rounds of the bare response, so that a busy machine
slows all alike; printed are medians. `share` is the rate beside the bare one; `cpu` is the same by the
server's CPU time, which other processes disturb less; `cost` is the CPU time of a request with many jobs in
the table beside that with few.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from sqlalchemy import Engine, insert, make_url, select  # noqa: E402

from benchmarks.sides import processor  # noqa: E402
from jobs.database import connect  # noqa: E402
from jobs.ids import new_id  # noqa: E402
from jobs.repository import Repository  # noqa: E402
from jobs.settings import Settings  # noqa: E402
from jobs.signing.keys import generate_key  # noqa: E402
from jobs.signing.secret import ensure_secret, load_secrets  # noqa: E402
from jobs.specs import parse_request  # noqa: E402
from jobs.tables import jobs, metadata  # noqa: E402

AIMS = {"job_304": 0.2, "job_body": 0.12, "page_of_50": 0.02}
DEEP_PAGE, DEEP_LIMIT = 500, 2
HELD = 200
REQUEST = {"kind": "prune", "spec": {"model": {"source": "local", "name": "m"}, "pruning_percentage": 20}}


@dataclass(frozen=True)
class Target:
    """What is asked for, and which status says that it worked."""

    path: str
    headers: Mapping[str, str]
    status: int = 200

    def encode(self) -> bytes:
        """The request as it goes over the wire."""
        lines = [f"GET {self.path} HTTP/1.1", "Host: bench"]
        return ("\r\n".join(lines + [f"{k}: {v}" for k, v in self.headers.items()]) + "\r\n\r\n").encode()


BARE = Target("/bare", {})
Results = Mapping[int, Mapping[str, Mapping[str, float]]]


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, status: bytes) -> None:
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    if head[9:12] != status:
        raise RuntimeError(head.split(b"\r\n", 1)[0].decode())
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    if length and status != b"304":
        await reader.readexactly(int(length))


async def _round(port: int, target: Target, seconds: float, connections: int) -> float:
    """Requests a second over one round."""
    raw, status = target.encode(), str(target.status).encode()
    count = 0

    async def run(until: float) -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        try:
            while time.perf_counter() < until:
                await _one(reader, writer, raw, status)
                count += 1
        finally:
            writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(run(started + seconds) for _ in range(connections)))
    return count / (time.perf_counter() - started)


@dataclass(frozen=True)
class Server:
    """A server process and its port."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """CPU time that it has used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Table:
    """A server over a table with so many jobs, and what is asked of it."""

    jobs: int
    server: Server
    targets: Mapping[str, Target]


@dataclass(frozen=True)
class Speed:
    """Requests in one round, by the clock and by the server's CPU time."""

    per_second: float
    per_cpu_second: float


def _speed(server: Server, target: Target, seconds: float, connections: int) -> Speed:
    before = server.cpu_seconds()
    rate = asyncio.run(_round(server.port, target, seconds, connections))
    used = max(server.cpu_seconds() - before, 0.01)
    return Speed(rate, rate * seconds / used)


def measure(tables: Sequence[Table], args: argparse.Namespace) -> Results:
    """Medians over the rounds: requests a second, and the share of the bare response's rate beside it."""
    found: dict[tuple[int, str], list[tuple[Speed, Speed]]] = defaultdict(list)
    for _ in range(args.rounds):
        for name in tables[0].targets:
            for table in tables:  # few and many jobs in turn, so that both meet the same machine
                bare = _speed(table.server, BARE, args.seconds, args.connections)
                ours = _speed(table.server, table.targets[name], args.seconds, args.connections)
                found[table.jobs, name].append((ours, bare))
    return {
        table.jobs: {name: _medians(found[table.jobs, name]) for name in table.targets} for table in tables
    }


def _medians(rounds: Sequence[tuple[Speed, Speed]]) -> dict[str, float]:
    return {
        "per_second": statistics.median(ours.per_second for ours, _ in rounds),
        "share": statistics.median(ours.per_second / bare.per_second for ours, bare in rounds),
        "cpu_share": statistics.median(ours.per_cpu_second / bare.per_cpu_second for ours, bare in rounds),
        "cpu_ms": statistics.median(1000 / ours.per_cpu_second for ours, _ in rounds),
    }


async def _held(port: int, waiting: Target, count: int) -> list[float]:
    """Milliseconds that /livez takes while `count` long polls are held."""
    raw = waiting.encode()
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in held:
        writer.write(raw)
    await asyncio.sleep(2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(100):
        started = time.perf_counter()
        await _one(reader, writer, Target("/livez", {}).encode(), b"200")
        times.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.02)
    for _, each in [*held, (reader, writer)]:
        each.close()
    return times


def fill(engine: Engine, settings: Settings, count: int) -> list[str]:
    """Put `count` ended jobs of one tenant into the table; returns all ids, oldest first."""
    repository = Repository(engine, settings)
    with engine.connect() as connection:
        ids = list(connection.execute(select(jobs.c.id).order_by(jobs.c.id)).scalars())
    if not ids:
        repository.ensure_tenant("bench")
        ids = [repository.create_job("bench", parse_request(REQUEST), queue="cpu").id]
        repository.cancel_job(ids[0])
    with engine.connect() as connection:
        row = dict(connection.execute(select(jobs).where(jobs.c.id == ids[0])).mappings().one())
    fresh = [new_id() for _ in range(count - len(ids))]
    for start in range(0, len(fresh), 5000):
        with engine.begin() as connection:
            connection.execute(
                insert(jobs), [{**row, "id": job_id} for job_id in fresh[start : start + 5000]]
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")  # as autovacuum and PRAGMA optimize do in production
    return ids + fresh


def targets_for(ids: list[str], key: str) -> dict[str, Target]:
    """What is measured, for a table with these jobs."""
    auth = {"Authorization": f"Bearer {key}"}
    middle = ids[len(ids) // 2]
    version = {"If-None-Match": '"2"'}
    deep = ids[-(DEEP_PAGE - 1) * DEEP_LIMIT]
    listing = "/v1/jobs?state=cancelled"
    return {
        "job_304": Target(f"/v1/jobs/{middle}", {**auth, **version}, 304),
        "job_body": Target(f"/v1/jobs/{middle}", auth),
        "page_of_50": Target("/v1/jobs?limit=50", auth),
        "filtered_page_1": Target(f"{listing}&limit={DEEP_LIMIT}", auth),
        "filtered_page_500": Target(f"{listing}&limit={DEEP_LIMIT}&cursor={deep}", auth),
    }


@contextmanager
def served(settings: Settings) -> Iterator[Server]:
    """The server in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", settings.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("no pipe to the server")
        yield Server(int(process.stdout.readline()), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(20)


def serve(raw: str) -> None:
    """The server's side: the API and the bare response behind one uvicorn worker."""
    import socket

    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send

    from api.main import Options, create_app
    from jobs.logs import configure_logging

    settings = Settings.model_validate_json(raw)
    configure_logging(settings, "api")
    settings = settings.model_copy(update={"requests_per_minute": 10**9})
    api = create_app(settings, Options(background=False))
    bare = Starlette(routes=[Route("/bare", lambda _request: PlainTextResponse("ok"))])

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (bare if scope.get("path") == "/bare" else api)(scope, receive, send)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(both, log_level="error", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])


def import_seconds() -> float:
    """The quickest of three fresh imports of the API."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import api.main"], check=True, cwd=ROOT)
        times.append(time.perf_counter() - started)
    return min(times)


def report(results: Results, backend: str) -> dict[str, Any]:
    """Print a table; returns the numbers."""
    few, many = min(results), max(results)
    print(f"{backend}: medians; share = rate beside a bare Starlette response on the same server")
    heads = "".join(f"{count:>12,} jobs{'share':>7}{'cpu':>7}" for count in results)
    print(f"{'':18}{heads}{'cost':>7}{'aim':>6}")
    costs = {}
    for name in results[few]:
        cells = [
            f"{r['per_second']:>15,.0f}/s{r['share']:>7.3f}{r['cpu_share']:>7.3f}"
            for r in _rows(results, name)
        ]
        costs[name] = results[many][name]["cpu_ms"] / results[few][name]["cpu_ms"]
        print(f"{name:18}{''.join(cells)}{costs[name]:>7.2f}{AIMS.get(name, ''):>6}")
    return {"backend": backend, "results": results, "cost": costs}


def _rows(results: Results, name: str) -> list[Mapping[str, float]]:
    return [table[name] for table in results.values()]


def settings_for(args: argparse.Namespace, folder: Path, count: int) -> Settings:
    """Settings with a database of its own for each number of jobs (on Postgres a schema)."""
    url = f"sqlite:///{folder}/{count}.db"
    if args.database_url:
        schema = f"load_{count}"
        engine = connect(args.database_url)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        engine.dispose()
        parsed = make_url(args.database_url).update_query_dict({"options": f"-csearch_path={schema}"})
        url = parsed.render_as_string(hide_password=False)
    return Settings(data_dir=folder, log_level="INFO", max_jobs_per_tenant=10**9, database_url=url)


def open_table(stack: ExitStack, args: argparse.Namespace, folder: Path, count: int) -> Table:
    """Fill a table and serve it."""
    settings = settings_for(args, folder, count)
    ensure_secret(settings.secret_file)
    engine = connect(settings.database_url)
    stack.callback(engine.dispose)
    metadata.create_all(engine)
    key = generate_key(load_secrets(settings.secret_file))
    repository = Repository(engine, settings)
    repository.create_key("bench", key_hash=key.hash, hint=key.hint, scopes=["jobs:read"])
    ids = fill(engine, settings, count)
    return Table(count, stack.enter_context(served(settings)), targets_for(ids, key.plain))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database-url", help="an empty database; by default SQLite in a temporary folder")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one round")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    backend = make_url(args.database_url).get_backend_name() if args.database_url else "sqlite"
    print(processor())
    with tempfile.TemporaryDirectory(prefix="optipfair-load-") as folder, ExitStack() as stack:
        tables = [open_table(stack, args, Path(folder), count) for count in sorted(args.jobs)]
        numbers = report(measure(tables, args), backend) | {"processor": processor()}
        largest = tables[-1].targets["job_304"]
        patient = Target(largest.path, {**largest.headers, "Prefer": "wait=30"})
        livez = asyncio.run(_held(tables[-1].server.port, patient, HELD))
    numbers["livez_ms"] = {"median": statistics.median(livez), "max": max(livez)}
    print(f"/livez with {HELD} held waits: {statistics.median(livez):.1f} ms, at most {max(livez):.1f} ms")
    numbers["import_seconds"] = import_seconds()
    print(f"import api.main in a fresh process: {numbers['import_seconds']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
