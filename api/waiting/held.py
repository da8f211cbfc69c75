"""Held requests: long polls and event streams, all served by the one notifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.context import Services
from api.views import event_view
from api.waiting.notifier import Watch
from jobs.patience import current_budget
from jobs.rows import Event, Job

KEEPALIVE_SECONDS = 15.0
_PAGE = 1000


async def wait_for_change(services: Services, request: Request, job: Job, seconds: float) -> Job:
    """The job after its next change, or as it was when `seconds` have passed or the caller has left."""
    current_budget().lift()  # it is held on purpose
    with services.notifier.watch(job.id) as watch:
        changed = await _unless_left(request, watch.until_version(job.version, seconds))
        return await _reload(services, watch) if changed else job


async def wait_for_end(services: Services, request: Request, job: Job, seconds: float) -> Job:
    """The job when it has ended, or as it is when `seconds` have passed; at once if it ended before."""
    if job.terminal or not seconds:
        return job
    current_budget().lift()
    with services.notifier.watch(job.id) as watch:
        await _unless_left(request, watch.until_end(job.version, seconds))
        return await _reload(services, watch)


async def _reload(services: Services, watch: Watch) -> Job:
    """The job as it is now, read once for all who wait for it."""

    async def load() -> Job:
        return await services.quickly(services.repository.get_job, watch.job_id)

    return await watch.once("job", load)


async def _unless_left(request: Request, wait: Coroutine[Any, Any, bool]) -> bool:
    """The result of a wait; False as soon as the caller has closed the connection."""
    waiting, left = asyncio.create_task(wait), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({waiting, left}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done() and waiting.result()
    finally:
        waiting.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # the (empty) body of the request comes first


async def event_stream(services: Services, job: Job, after: int) -> AsyncIterator[bytes]:
    """The events of a job after `after` in the SSE format; ends after the last event of an ended job."""
    yield b"retry: 2000\n\n"
    seen = after
    with services.notifier.watch(job.id) as watch:
        while not services.notifier.closing:
            for event in await _events(services, watch, job.id, seen):
                seen = event.seq
                yield encode(event)
            version = watch.version
            if watch.gone or (version is not None and version.terminal and version.last_seq <= seen):
                return
            if version is not None and version.last_seq > seen:
                continue
            if not await watch.changed(KEEPALIVE_SECONDS):
                yield KEEPALIVE_COMMENT


async def _events(services: Services, watch: Watch, job_id: str, after: int) -> list[Event]:
    """Events after a number; waiters that stand at the same one share the query."""
    version = watch.version
    if version is not None and version.last_seq <= after:
        return []

    async def load() -> list[Event]:
        return await run_in_threadpool(services.repository.list_events, job_id, after=after, limit=_PAGE)

    return await watch.once(("events", after), load)


def encode(event: Event) -> bytes:
    """One event on the wire; its id is its number, which Last-Event-ID gives back."""
    return format_sse_event(data_str=event_view(event).model_dump_json(), event=event.type, id=str(event.seq))
