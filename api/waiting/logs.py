"""Logs of attempts as lines with stable numbers, and the stream that follows them.

A line's number is its attempt and its place in what that attempt has said, whether or not the lines before it
are still kept; line 0 is the heading.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.context import Services
from api.waiting.held import KEEPALIVE_SECONDS
from api.waiting.notifier import Watch
from jobs.rows import AttemptLog, Job
from jobs.times import rfc3339

Place = tuple[int, int]
_START: Place = (0, -1)
_ID = re.compile(r"(\d{1,10})\.(\d{1,10})", re.ASCII)


def from_id(header: str | None) -> Place:
    """The line that Last-Event-ID names; an id that this service did not give is as good as none."""
    match = _ID.fullmatch(header or "")
    return (int(match[1]), int(match[2])) if match else _START


def numbered(log: AttemptLog) -> list[tuple[Place, str]]:
    """An attempt's lines with their numbers: a heading, a note of what is no longer kept, the lines."""
    number = log.attempt.number
    heading = f"=== attempt {number}, started {rfc3339(log.attempt.started_at)}"
    found = [((number, 0), heading)]
    if log.dropped:
        found.append(((number, log.dropped), f"[{log.dropped} earlier lines are no longer kept]"))
    return found + [((number, log.dropped + place), line) for place, line in enumerate(log.lines, 1)]


async def log_stream(
    services: Services, job: Job, attempt: int | None, after: Place, tail: int | None
) -> AsyncIterator[bytes]:
    """The lines after a place in the SSE format, as they come; ends once the job has, or the attempt."""
    yield b"retry: 2000\n\n"
    seen = after
    with services.notifier.watch(job.id) as watch:
        while not services.notifier.closing:
            # looked at first: what an attempt says is kept before the job's end is
            version = watch.version
            logs = await logs_of(services, watch, attempt)
            lines = [item for log in logs for item in numbered(log) if item[0] > seen]
            if tail is not None:
                lines, tail = lines[max(0, len(lines) - tail) :], None
            for place, line in lines:
                seen = place
                yield format_sse_event(data_str=line, event="line", id=f"{place[0]}.{place[1]}")
            if watch.gone or (version is not None and version.terminal):
                return
            if attempt is not None and all(log.attempt.finished_at is not None for log in logs):
                return
            unchanged = version is None or watch.version == version
            if unchanged and not await watch.changed(KEEPALIVE_SECONDS):
                yield KEEPALIVE_COMMENT


async def logs_of(services: Services, watch: Watch, attempt: int | None) -> list[AttemptLog]:
    """The logs; who waits for the same ones shares the query."""

    async def load() -> list[AttemptLog]:
        return await run_in_threadpool(services.repository.list_logs, watch.job_id, attempt)

    return await watch.once(("logs", attempt), load)
