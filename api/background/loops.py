"""What every API process does in the background: publish the outbox, sweep, send webhooks, purge.

Each round is one call of a repository verb that is safe to run in several processes at once. A round that
fails is logged and counted, and the loop goes on a little later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from api.background.deliveries import WebhookSender
from api.background.purging import purge_some, remove_ownerless, thin_progress
from jobs.logs import structlog
from jobs.rows import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.context import Services

P = ParamSpec("P")
T = TypeVar("T")
Round = Callable[[], Awaitable[bool]]
"""One round of a loop; True when there may be more to do at once."""

DISPATCH_SECONDS = 0.5
WEBHOOK_SECONDS = 1.0
BOOKS_SECONDS = 5.0
RECONCILE_SECONDS = 6 * 3600.0
#: A process that died over it has its turn taken after so long.
RECONCILE_LEASE_SECONDS = 1200.0
PURGE_SECONDS = 60.0
#: Between two batches of a purge: whoever writes meanwhile shall not wait for many of them.
BREATH_SECONDS = 0.05
#: How often somebody is looked for who has to look for orphans.
ORPHAN_SECONDS = 60.0
_FAILED_PAUSE_SECONDS = 2.0
_log = structlog.get_logger("api.background.loops")


class Loops:
    """The background work of one API process, on threads of its own: requests keep theirs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="loops")
        self._sender = WebhookSender(services.settings)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def dispatch(self) -> bool:
        """Publish due outbox messages."""
        return await self._call(_publish_some, self._services)

    async def sweep(self) -> bool:
        """Put lost and forgotten jobs back; what was put back is published at once."""
        changed = await self._call(self._services.repository.sweep_expired)
        for job in changed:
            _log.info("swept", job_id=job.id, state=job.state.value, attempt=job.attempt)
        if changed:
            self._services.outbox_filled.set()
        return bool(changed)

    async def deliver(self) -> bool:
        """Send due webhook deliveries."""
        repository = self._services.repository
        if not await self._call(
            repository.deliveries_waiting
        ):  # a plain read: an idle loop takes no write lock
            return False
        due = await self._call(repository.take_deliveries)
        await asyncio.gather(*(self._deliver_one(delivery) for delivery in due))
        return bool(due)

    async def _deliver_one(self, delivery: Delivery) -> None:
        repository = self._services.repository
        result = await self._sender.send(delivery)
        if result.status is not None and result.delivered:
            await self._call(repository.mark_delivered, delivery.id, result.status)
        else:
            await self._call(repository.mark_undelivered, delivery.id, result.status, result.error)

    async def purge(self) -> bool:
        """Remove what nobody needs any more: old artifacts and jobs, remembered answers, silent workers."""
        more = await self._call(purge_some, self._services)
        more |= await self._call(thin_progress, self._services)
        if more:
            await asyncio.sleep(BREATH_SECONDS)
        return more

    async def keep_books(self) -> bool:
        """Forget the changes that every waiter has been told of, and fold and reconcile the tallies."""
        await self._call(self._services.repository.forget_changes)
        await self._call(self._services.repository.fold_tallies)
        wrong = await self._call(_reconcile, self._services)
        if wrong:
            _log.warning("tallies_were_wrong", figures=wrong)
        return False

    async def clean(self) -> bool:
        """Remove stored files that nothing refers to."""
        removed = await self._call(remove_ownerless, self._services)
        if removed:
            _log.info("orphans_removed", folders=removed)
        return False

    async def run(self, name: str, step: Round, pause: float, wake: asyncio.Event | None = None) -> None:
        """Run rounds for ever, about `pause` seconds apart (processes shall not march in step)."""
        while True:
            seconds = pause * random.uniform(0.9, 1.1)  # noqa: S311 - not for secrets
            try:
                more = await step()
                self._services.rounds[name] = time.time()
                if more:
                    continue
            except Exception as error:
                self._services.metrics.loop_errors.labels(name).inc()
                _log.warning("loop_failed", loop=name, error=type(error).__name__)
                seconds = max(seconds, _FAILED_PAUSE_SECONDS)
            await _pause(seconds, wake)

    async def close(self) -> None:
        """Let go of the threads and of the HTTP client."""
        await self._sender.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _pause(seconds: float, wake: asyncio.Event | None) -> None:
    if wake is None:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
    wake.clear()


def _publish_some(services: Services) -> bool:
    if not services.repository.outbox_waiting():
        return False
    entries = services.repository.take_outbox()
    published = []
    try:
        for entry in entries:
            services.publisher.publish(entry)
            published.append(entry)
    finally:  # what went out is marked even when the next one fails; the rest is due again in 10 s
        if published:
            services.repository.mark_published(published)
    return bool(entries)


def _reconcile(services: Services) -> int:
    """Count everything, if that is due and nobody else does; how many figures were wrong."""
    repository = services.repository
    duty = repository.take_duty("reconcile", lease_seconds=RECONCILE_LEASE_SECONDS)
    if duty is None:
        return 0
    wrong = repository.reconcile_tallies()
    repository.end_duty(duty, again_in_seconds=RECONCILE_SECONDS)
    return wrong


@asynccontextmanager
async def background(services: Services) -> AsyncIterator[None]:
    """Run the loops for as long as the context lasts."""
    loops = Loops(services)
    settings = services.settings
    tasks = [
        asyncio.create_task(loops.run("dispatch", loops.dispatch, DISPATCH_SECONDS, services.outbox_filled)),
        asyncio.create_task(loops.run("sweep", loops.sweep, settings.sweep_seconds)),
        asyncio.create_task(loops.run("webhooks", loops.deliver, WEBHOOK_SECONDS)),
        asyncio.create_task(loops.run("books", loops.keep_books, BOOKS_SECONDS)),
        asyncio.create_task(loops.run("purge", loops.purge, PURGE_SECONDS)),
        asyncio.create_task(loops.run("orphans", loops.clean, ORPHAN_SECONDS)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await loops.close()
