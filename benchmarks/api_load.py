"""Requests a second of the API beside a bare Starlette response, on the same server in one run.

    python benchmarks/api_load.py                                # SQLite, 1 000 and 100 000 jobs
    python benchmarks/api_load.py --database-url postgresql://…  # the same on Postgres (an empty database)

One uvicorn worker serves both the API (authentication, rate limit and access log on) and `/bare`, which
answers two bytes from plain Starlette. This process is the client: kept connections, one request in flight on
each. Rounds of each measurement alternate with rounds of the bare response, so that a busy machine slows both
alike; printed are medians. `share` is the rate beside the bare one, `cost` the time of a request with many
jobs in the table beside that with few.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sqlalchemy import Engine, insert, select  # noqa: E402

from jobs.database import connect  # noqa: E402
from jobs.ids import new_id  # noqa: E402
from jobs.keys import generate_key  # noqa: E402
from jobs.repository import Repository  # noqa: E402
from jobs.secret import ensure_secret, load_secrets  # noqa: E402
from jobs.settings import Settings  # noqa: E402
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


def measure(
    port: int, targets: Mapping[str, Target], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Medians over the rounds: requests a second, and the share of the bare response's rate beside it."""
    bare = Target("/bare", {})
    rates: dict[str, list[float]] = {name: [] for name in targets}
    shares: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(args.rounds):
        for name, target in targets.items():
            base = asyncio.run(_round(port, bare, args.seconds / 2, args.connections))
            rates[name].append(asyncio.run(_round(port, target, args.seconds, args.connections)))
            base += asyncio.run(_round(port, bare, args.seconds / 2, args.connections))
            shares[name].append(rates[name][-1] / (base / 2))
    return {
        name: {"per_second": statistics.median(rates[name]), "share": statistics.median(shares[name])}
        for name in targets
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
def served(settings: Settings) -> Iterator[int]:
    """The server in a process of its own; gives its port."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", settings.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("no pipe to the server")
        yield int(process.stdout.readline())
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

    from api.main import Limits, Options, create_app
    from jobs.logs import configure_logging

    settings = Settings.model_validate_json(raw)
    configure_logging(settings, "api")
    options = Options(limits=Limits(requests_per_key=10**9), background=False)
    api = create_app(settings, options)
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


def report(results: Mapping[int, Mapping[str, Mapping[str, float]]], backend: str) -> dict[str, Any]:
    """Print a table; returns the numbers."""
    few, *more = sorted(results)
    print(f"{backend}: medians; share = rate beside a bare Starlette response on the same server")
    print(
        f"{'':20}" + "".join(f"{count:>12,} jobs{'share':>8}" for count in results) + f"{'cost':>8}{'aim':>8}"
    )
    costs = {}
    for name in results[few]:
        cells = "".join(
            f"{r[name]['per_second']:>15,.0f}/s{r[name]['share']:>8.3f}" for r in results.values()
        )
        cost = results[few][name]["share"] / results[more[-1]][name]["share"] if more else 1.0
        costs[name] = cost
        print(f"{name:20}{cells}{cost:>8.2f}{AIMS.get(name, ''):>8}")
    return {"backend": backend, "results": results, "cost": costs}


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
    with tempfile.TemporaryDirectory(prefix="optipfair-load-") as folder:
        extra = {"database_url": args.database_url} if args.database_url else {}
        settings = Settings(data_dir=Path(folder), log_level="INFO", max_jobs_per_tenant=10**9, **extra)
        ensure_secret(settings.secret_file)
        engine = connect(settings.database_url)
        metadata.create_all(engine)
        key = generate_key(load_secrets(settings.secret_file))
        scopes = ["jobs:read"]
        Repository(engine, settings).create_key("bench", key_hash=key.hash, hint=key.hint, scopes=scopes)
        results = {}
        for count in sorted(args.jobs):
            ids = fill(engine, settings, count)
            with served(settings) as port:
                results[count] = measure(port, targets_for(ids, key.plain), args)
                if count == max(args.jobs):
                    waiting = targets_for(ids, key.plain)["job_304"]
                    patient = Target(waiting.path, {**waiting.headers, "Prefer": "wait=30"})
                    livez = asyncio.run(_held(port, patient, HELD))
        numbers = report(results, engine.dialect.name)
        numbers["livez_ms"] = {"median": statistics.median(livez), "max": max(livez)}
        print(
            f"/livez with {HELD} held waits: {statistics.median(livez):.1f} ms, at most {max(livez):.1f} ms"
        )
        numbers["import_seconds"] = import_seconds()
        print(f"import api.main in a fresh process: {numbers['import_seconds']:.2f} s")
        engine.dispose()
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
