"""The live part of a job's page as server-sent events: HTML fragments that htmx puts in place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.context import Services
from api.waiting.held import KEEPALIVE_SECONDS
from jobs.errors import NotFoundError
from jobs.rows import Job

MIN_PAUSE_SECONDS = 0.5  # people read no faster, and every fragment is rendered anew


async def fragments(services: Services, job_id: str, render: Callable[[Job], str]) -> AsyncIterator[bytes]:
    """The fragment now and after each change; then `ended`, upon which the page closes the stream.

    When the service stops it just ends: the page connects again, to the service that comes next.
    """

    def make() -> tuple[str, Job]:
        job = services.repository.get_job(job_id)
        return render(job), job

    shown = -1
    with services.notifier.watch(job_id) as watch:
        while not services.notifier.closing:
            try:
                html, job = await run_in_threadpool(make)
            except NotFoundError:
                break
            if job.version != shown:
                shown = job.version
                yield format_sse_event(data_str=html)
            if job.terminal:
                break
            await asyncio.sleep(MIN_PAUSE_SECONDS)
            while not await watch.until_version(shown, KEEPALIVE_SECONDS):
                yield KEEPALIVE_COMMENT
            if watch.gone:
                break
        else:
            return
    yield format_sse_event(event="ended", data_str="{}")
