"""One poller for everybody who waits: long polls and event streams hold neither a thread nor a query.

While somebody waits, a single task asks the database every 200 ms for the versions of all watched jobs at
once, on a thread of its own, and wakes those whose job changed. It works the same on SQLite and Postgres, and
with any number of API processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import structlog

from jobs.rows import Version

POLL_SECONDS = 0.2
_log = structlog.get_logger("api.waiting.notifier")

VersionsOf = Callable[[Sequence[str]], Mapping[str, Version]]
T = TypeVar("T")


class Watch:
    """What is known of one job, shared by all who wait for it; `version` is None until first polled."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.watchers = 0
        self.version: Version | None = None
        self.gone = False
        self.stopped = False
        self._changed = asyncio.Event()
        self._loads: dict[object, asyncio.Task[Any]] = {}

    def update(self, version: Version | None) -> None:
        """Take in what the poller saw, and wake the waiters if it is new."""
        if version == self.version and not (version is None and not self.gone):
            return
        self.version, self.gone = version, version is None
        self._loads.clear()
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()

    def wake(self) -> None:
        """Wake the waiters with nothing new: the service is stopping."""
        self.stopped = True
        self._changed.set()

    async def once(self, key: object, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `load`, run once for all waiters that ask for `key` before the next change."""
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.get_running_loop().create_task(load())
        result: T = await asyncio.shield(task)  # one waiter that leaves must not cancel it for the others
        return result

    async def changed(self, timeout_seconds: float) -> bool:
        """Wait for the next change; False when the time is over first."""
        try:
            async with asyncio.timeout(max(timeout_seconds, 0)):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def until_version(self, known: int, timeout_seconds: float) -> bool:
        """Wait until the job's version is above `known`, or the job is gone; False when time is over first.

        Versions only rise, so what the poller saw before the caller read the job is not taken for news.
        """
        return await self._until(lambda version: version.version > known, timeout_seconds)

    async def until_end(self, known: int, timeout_seconds: float) -> bool:
        """Wait until the job has ended, at version `known` or later; for the rest like `until_version`.

        An end that the poller saw earlier than the caller read the job was undone by a retry.
        """
        return await self._until(
            lambda version: version.terminal and version.version >= known, timeout_seconds
        )

    async def _until(self, reached: Callable[[Version], bool], timeout_seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while not (self.gone or self.stopped) and (self.version is None or not reached(self.version)):
            if not await self.changed(deadline - loop.time()):
                return False
        return True


class Notifier:
    """Owner of the watches and of the poller.

    Args:
        versions: repository call that gives the versions of several jobs in one query.
        poll_seconds: pause between two polls.
    """

    def __init__(self, versions: VersionsOf, poll_seconds: float = POLL_SECONDS) -> None:
        self._versions, self._pause = versions, poll_seconds
        self._watches: dict[str, Watch] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="notifier")
        self.closing = False

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Watch a job for as long as the context lasts."""
        watch = self._watches.setdefault(job_id, Watch(job_id))
        watch.watchers += 1
        if self.closing:
            watch.wake()
        else:
            self._ensure_running()
        self._wanted.set()
        try:
            yield watch
        finally:
            watch.watchers -= 1
            if watch.watchers == 0:
                self._watches.pop(job_id, None)

    @property
    def watched(self) -> int:
        """How many jobs somebody waits for."""
        return len(self._watches)

    def _ensure_running(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="notifier")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.closing:
            if not self._watches:
                self._wanted.clear()
                await self._wanted.wait()
            ids = list(self._watches)
            try:
                found = await loop.run_in_executor(self._thread, self._versions, ids)
            except Exception as error:  # a database that restarts must not end the poller
                _log.warning("poll_failed", error=type(error).__name__)
            else:
                for job_id in ids:
                    watch = self._watches.get(job_id)
                    if watch is not None:
                        watch.update(found.get(job_id))
            await asyncio.sleep(self._pause)

    async def close(self) -> None:
        """Stop polling and let every waiter go; a repeat is safe."""
        self.closing = True
        for watch in list(self._watches.values()):
            watch.wake()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)
