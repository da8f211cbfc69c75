"""What pages of the dashboard cost: processor time and SQL statements a request, and of pages that stay open.

    python benchmarks/service/pages.py  # SQLite, then a real Postgres of its own

A database holds 1 000 jobs with labels, one of them finished with 1 000 events, charts and files, and one
that runs. Each page is asked for many times, in this process and without a network; printed are milliseconds
of this process' processor time a request, those by the clock, and how many statements one takes. Then pages
are left open, one and 200, with one key or with a key each: statements a second while nothing happens. A key
is looked up every two seconds while a page is open, however many pages are its reader's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
from fastapi import FastAPI  # noqa: E402

import migrations  # noqa: E402
from api.dashboard.session import COOKIE  # noqa: E402
from api.main import Options, create_app  # noqa: E402
from benchmarks.service.scale import processor  # noqa: E402
from jobs.logs import configure_logging  # noqa: E402
from jobs.rows import Progress  # noqa: E402
from jobs.settings import Settings  # noqa: E402
from jobs.signing.keys import generate_key  # noqa: E402
from jobs.specs import parse_request  # noqa: E402
from tests.api.conftest import FakeWorker, counted  # noqa: E402
from tests.api.dashboard.open_pages import left_open  # noqa: E402
from tests.api.dashboard.samples import finish  # noqa: E402
from tests.servers import postgres_server, served  # noqa: E402

JOBS, EVENTS, OPEN = 1_000, 1_000, 200
TENANT = "acme"
AIMS = {"list": 100.0, "job": 150.0}
"""Milliseconds of server time of a request."""
REQUEST = {
    "kind": "prune",
    "spec": {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 20},
    "labels": {"team": "nlp", "run": "nightly"},
}
Numbers = dict[str, Any]


def make_key(app: FastAPI) -> str:
    """A fresh key of the tenant."""
    services = app.state.services
    key = generate_key(services.secrets)
    scopes = ("jobs:read", "jobs:write")
    services.repository.create_key(TENANT, key_hash=key.hash, hint=key.hint, scopes=scopes)
    return key.plain


def filled(url: str, folder: Path) -> tuple[FastAPI, str, str]:
    """An app on a database with all those jobs; the ids of the finished and the running one."""
    migrations.upgrade(url)
    wide = {"max_jobs_per_tenant": 10**6, "max_queue_depth": 10**6, "requests_per_minute": 10**7}
    app = create_app(
        Settings(data_dir=folder, database_url=url, log_level="ERROR", **wide), Options(background=False)
    )
    services = app.state.services
    services.repository.ensure_tenant(TENANT)
    worker = FakeWorker(services)
    worker.beat()
    made = [services.repository.create_job(TENANT, parse_request(REQUEST), queue="cpu") for _ in range(JOBS)]
    done, running = made[-1].id, made[-2].id
    for job_id in (done, running):
        attempt = worker.claim(job_id)
        for step in range(EVENTS):
            data = {
                "stage": f"stage {step // 100}",
                "done": step % 100,
                "total": 100,
                "message": f"layer {step}",
            }
            progress = Progress(step / EVENTS, data["stage"], data["message"], 10.0)
            services.repository.add_event(job_id, attempt, "progress", data, progress=progress)
        if job_id == done:
            finish(worker, {"id": done, "kind": "prune"}, attempt)
    return app, done, running


async def one_by_one(app: FastAPI, paths: dict[str, str], rounds: int) -> Numbers:
    """Each page so many times."""
    found: Numbers = {}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", cookies={COOKIE: make_key(app)}
    ) as c:
        for name, path in paths.items():
            with counted(app) as said:
                answer = await c.get(path)
                assert answer.status_code == 200, answer.text
                await c.get(path)
                statements = len(said)
                said.clear()
                spent, clock = [], []
                for _ in range(rounds):
                    cpu, began = sum(os.times()[:2]), time.perf_counter()
                    await c.get(path)
                    clock.append(1000 * (time.perf_counter() - began))
                    spent.append(1000 * (sum(os.times()[:2]) - cpu))
            found[name] = {
                "cpu_ms": statistics.fmean(spent),
                "clock_ms": statistics.median(clock),
                "statements": len(said) / rounds,
                "bytes": len(answer.content),
            }
            assert statements >= len(said) / rounds
    return found


def measure(url: str, folder: Path, rounds: int, seconds: float) -> Numbers:
    """All numbers of one database."""
    app, done, running = filled(url, folder)
    pages = {
        "list": "/",
        "list by label": "/?label.team=nlp&kind=prune",
        "job": f"/jobs/{done}",
        "running job": f"/jobs/{running}",
        "compare": f"/ui/compare?id={done}&id={running}",
        "form": "/ui/new",
        "models": "/ui/models",
    }
    found: Numbers = {"pages": asyncio.run(one_by_one(app, pages, rounds)), "open": {}}
    for name, row in found["pages"].items():
        times = f"{row['cpu_ms']:>8.1f} ms cpu{row['clock_ms']:>8.1f} ms"
        sizes = f"{row['statements']:>5.0f} statements{row['bytes'] / 1024:>7.0f} KiB"
        print(f"{name:>15}{times}{sizes}", flush=True)
    keys = [make_key(app) for _ in range(OPEN)]
    streams = {
        "list": ("/ui/jobs/stream", keys[:1] * OPEN),
        "list, a key each": ("/ui/jobs/stream", keys),
        "running job": (f"/ui/jobs/{running}/stream", keys[:1] * OPEN),
        "system": ("/ui/system/stream", keys[:1] * OPEN),
    }
    with served(app) as address:
        for name, (path, readers) in streams.items():
            one, many = (
                asyncio.run(left_open(app, address, path, chosen, seconds)) for chosen in (keys[:1], readers)
            )
            found["open"][name] = {"one": one, "many": many}
            print(f"{name:>17}: {one:.1f} statements/s for one page, {many:.1f} for {OPEN}", flush=True)
    app.state.services.engine.dispose()
    return found


def missed(numbers: Numbers) -> list[str]:
    """The aims that were missed."""
    found = []
    for database in ("sqlite", "postgres"):
        pages, streams = numbers[database]["pages"], numbers[database]["open"]
        found += [f"{database}: {name}" for name, aim in AIMS.items() if pages[name]["cpu_ms"] > aim]
        shared = {name: row for name, row in streams.items() if "a key each" not in name}
        found += [f"{database}: open {name}" for name, row in shared.items() if row["many"] > row["one"] + 1]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=6.0, help="for which pages are left open")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    configure_logging(Settings(log_level="ERROR"), "api")  # a line a request would be most of the time
    numbers: Numbers = {"processor": processor(), "load": os.getloadavg()[0]}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="optipfair-pages-")))
        print("SQLite", flush=True)
        numbers["sqlite"] = measure(f"sqlite:///{folder}/pages.db", folder / "one", args.rounds, args.seconds)
        server = stack.enter_context(postgres_server())
        print("Postgres", flush=True)
        numbers["postgres"] = measure(server.url, folder / "two", args.rounds, args.seconds)
    print(f"on {numbers['processor']}, load {numbers['load']:.1f} of {os.cpu_count()} cores")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2))
    for name in missed(numbers):
        print(f"missed: {name}")
    return 1 if missed(numbers) else 0


if __name__ == "__main__":
    sys.exit(main())
