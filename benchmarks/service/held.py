"""How long `/livez` takes while the API holds many requests, beside itself with none held.

    python -m benchmarks.service.held                # 500 verdict waits, 200 event streams, 20 uploads

One HTTP process as `optipfair-service api` starts it, on SQLite. 500 callers wait for the verdict of one of
50 running jobs (`verdict?wait=60`), 200 follow the events of one of them, and 20 send a file in pieces of
64 kB, four times a second. Meanwhile another process writes progress of one job after the other, ten times a
second, as workers would. `/livez` is asked over a connection of its own each time, as probes do. Rounds with
requests held and without take turns, so that other work on the machine slows both alike. Exits with 1 if the
median, or the slowest but one in a hundred, takes 50 ms or more.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.service.alone import Api, alone
from jobs.database import connect
from jobs.repository import Repository
from jobs.rows import Progress
from jobs.settings import Settings
from jobs.specs import parse_request

JOBS, WAITS, STREAMS, UPLOADS = 50, 500, 200, 20
ASKED, PAUSE_SECONDS = 200, 0.02
PIECE, PIECE_SECONDS = 64 * 1024, 0.25
UPLOAD_BYTES = 10**9
AIM_MS = 50.0
REQUEST = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}


def request(api: Api, method: str, path: str, *more: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Authorization: Bearer {api.key}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextmanager
def running_jobs(api: Api) -> Iterator[list[str]]:
    """Jobs that make progress while the context lasts."""
    engine = connect(api.settings.database_url)
    repository = Repository(engine, api.settings)
    ids = [repository.create_job("bench", parse_request(REQUEST), queue="cpu").id for _ in range(JOBS)]
    engine.dispose()
    command = [sys.executable, "-m", "benchmarks.service.held", "--write", *ids]
    writer = subprocess.Popen(command, env=api.environ)
    try:
        yield ids
    finally:
        writer.terminate()
        writer.wait(60)


def write(ids: list[str]) -> None:
    """Make progress with one job after the other, until this process is ended."""
    settings = Settings(data_dir=Path(os.environ["OPTIPFAIR_DATA_DIR"]), lease_seconds=3600)
    repository = Repository(connect(settings.database_url), settings)
    attempts = {}
    for job_id in ids:
        claim = repository.claim(job_id, "bench")
        attempts[job_id] = 0 if claim is None else claim.attempt
    number = 0
    while True:
        for job_id, attempt in attempts.items():
            number += 1
            progress = Progress(number % 1000 / 1000, "prune", f"step {number}", 3.0)
            repository.add_event(
                job_id, attempt, "progress", {"message": f"step {number}"}, progress=progress
            )
            time.sleep(0.1)


class Held:
    """Connections that the API holds; it counts what came over them."""

    def __init__(self, api: Api, jobs: list[str]) -> None:
        self._api, self._jobs = api, jobs
        self._tasks: list[asyncio.Task[None]] = []
        self.bytes_read = self.bytes_sent = self.ended = 0

    async def begin(self) -> None:
        """Open all of them."""
        jobs = self._jobs
        waits = [(f"/v1/jobs/{jobs[i % JOBS]}/verdict?wait=60", ()) for i in range(WAITS)]
        streams = [
            (f"/v1/jobs/{jobs[i % JOBS]}/events", ("Accept: text/event-stream",)) for i in range(STREAMS)
        ]
        for path, headers in (*waits, *streams):
            self._tasks.append(asyncio.create_task(self._read(request(self._api, "GET", path, *headers))))
        for number in range(UPLOADS):
            self._tasks.append(asyncio.create_task(self._send(await self._declare(number))))

    async def _read(self, head: bytes) -> None:
        """Ask, and ask again whenever the answer has come."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._api.port)
            try:
                writer.write(head.replace(b"Host: bench", b"Host: bench\r\nConnection: close"))
                while data := await reader.read(65536):
                    self.bytes_read += len(data)
                self.ended += 1
            finally:
                writer.close()

    async def _declare(self, number: int) -> str:
        name = f"text-{number}.txt"
        digest = hashlib.sha256(name.encode()).hexdigest()
        body = {
            "kind": "calibration",
            "name": name,
            "files": [{"name": name, "size": UPLOAD_BYTES, "sha256": digest}],
        }
        headers = {"Authorization": f"Bearer {self._api.key}"}
        async with httpx.AsyncClient(headers=headers, timeout=120) as client:
            made = await client.post(f"{self._api.url}/v1/uploads", json=body)
        return f"/v1/uploads/{made.raise_for_status().json()['id']}/files/{name}"

    async def _send(self, path: str) -> None:
        _reader, writer = await asyncio.open_connection("127.0.0.1", self._api.port)
        length = f"Content-Length: {UPLOAD_BYTES}"
        span = f"Content-Range: bytes 0-{UPLOAD_BYTES - 1}/{UPLOAD_BYTES}"
        try:
            writer.write(request(self._api, "PUT", path, length, span))
            while True:
                writer.write(bytes(PIECE))
                await writer.drain()
                self.bytes_sent += PIECE
                await asyncio.sleep(PIECE_SECONDS)
        finally:
            writer.close()

    async def end(self) -> None:
        """Close all of them; raises what made one of them fail."""
        failed = [task.exception() for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in failed:
            if error is not None:
                raise error


async def livez(api: Api) -> list[float]:
    """Milliseconds of each of many questions, each over a new connection."""
    raw = b"GET /livez HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    found = []
    for _ in range(ASKED):
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(raw)
        answer = await reader.read()
        found.append((time.perf_counter() - began) * 1000)
        writer.close()
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            raise RuntimeError(answer.decode())
        await asyncio.sleep(PAUSE_SECONDS)
    return found


def say(what: str, times: list[float], api: Api, before: float, seconds: float) -> None:
    """One line of figures."""
    cuts = statistics.quantiles(times, n=100)
    used = (api.cpu_seconds() - before) / seconds
    print(
        f"{what:10} median {cuts[49]:6.1f} ms   95 % {cuts[94]:6.1f}   99 % {cuts[98]:6.1f}"
        f"   slowest {max(times):6.1f}   processor {used:4.0%}",
        flush=True,
    )


async def measure(api: Api, jobs: list[str], rounds: int) -> tuple[list[float], list[float]]:
    """Times with nothing held, and with everything, in turn."""
    idle: list[float] = []
    busy: list[float] = []
    for _ in range(rounds):
        before, began = api.cpu_seconds(), time.perf_counter()
        idle += await livez(api)
        say("none held", idle, api, before, time.perf_counter() - began)
        held = Held(api, jobs)
        await held.begin()
        await asyncio.sleep(3)
        before, began = api.cpu_seconds(), time.perf_counter()
        busy += await livez(api)
        say("held", busy, api, before, time.perf_counter() - began)
        print(f"{'':10} {held.bytes_read / 1e6:.1f} MB of answers, {held.bytes_sent / 1e6:.0f} MB of uploads")
        await held.end()
        await asyncio.sleep(2)
    return idle, busy


def main() -> int:
    """Measure, print, and say whether it held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(given.write)
    with (
        tempfile.TemporaryDirectory(prefix="optipfair-held-") as folder,
        alone(Path(folder)) as api,
        running_jobs(api) as jobs,
    ):
        idle, busy = asyncio.run(measure(api, jobs, given.rounds))
    cuts = statistics.quantiles(busy, n=100)
    print(
        f"/livez, held beside none held: {statistics.median(busy) / statistics.median(idle):.1f} × the median"
    )
    return 0 if max(cuts[49], cuts[98]) < AIM_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
