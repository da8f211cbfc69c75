"""The live part of a job's page as server-sent events: its body after each change, and its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.context import Services
from api.waiting.held import KEEPALIVE_SECONDS
from api.waiting.logs import Place, logs_of, numbered
from api.waiting.notifier import Watch
from jobs.errors import NotFoundError
from jobs.rows import Job

MIN_PAUSE_SECONDS = 0.5  # people read no faster, and every body is rendered anew
Render = Callable[[Job], str]


async def job_stream(
    services: Services,
    job_id: str,
    render: Render,
    *,
    key: object,
    after: Place,
    allowed: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """Events `content` (HTML) and `line`, as they come; then `ended`, upon which the page closes the stream.

    When the service stops it just ends: the page connects again, to the service that comes next. Pages of
    equal `key` show the same, and share one rendering.
    """
    yield b"retry: 2000\n\n"
    shown = -1
    with services.notifier.watch(job_id) as watch:
        while not services.notifier.closing:
            if not await allowed():
                yield format_sse_event(event="signed-out", data_str="{}")
                return
            try:
                html, job = await _body(services, watch, key, render)
                lines = await _lines(services, watch, after)
            except NotFoundError:
                break
            if job.version != shown:
                shown = job.version
                yield format_sse_event(event="content", data_str=html)
            for place, line in lines:
                after = place
                yield format_sse_event(event="line", id=f"{place[0]}.{place[1]}", data_str=line)
            if job.terminal:
                break
            await asyncio.sleep(MIN_PAUSE_SECONDS)
            if not await watch.until_version(shown, KEEPALIVE_SECONDS):
                yield KEEPALIVE_COMMENT
            if watch.gone:
                break
        else:
            return
    yield format_sse_event(event="ended", data_str="{}")


async def _body(services: Services, watch: Watch, key: object, render: Render) -> tuple[str, Job]:
    """The body as it is now, made once for all who look."""

    def make() -> tuple[str, Job]:
        job = services.repository.get_job(watch.job_id)
        return render(job), job

    async def load() -> tuple[str, Job]:
        return await run_in_threadpool(make)

    return await watch.once(("body", key), load)


async def _lines(services: Services, watch: Watch, after: Place) -> list[tuple[Place, str]]:
    logs = await logs_of(services, watch, None)
    return [item for log in logs for item in numbered(log) if item[0] > after]
