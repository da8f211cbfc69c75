"""One poller for everybody who waits: long polls and event streams hold neither a thread nor a query.

While somebody waits, a single task asks the database every 200 ms what has changed since it last asked, on a
thread of its own, and wakes those whose job is among it. So waiting costs what changes, not how many wait. A
job that is watched for the first time is looked at once; all are after a silence in which the feed of changes
may have forgotten some. It works the same on SQLite and Postgres, and with any number of API processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, Protocol, TypeVar

from jobs.logs import structlog
from jobs.repository.whole.feed import PATIENCE_SECONDS, News
from jobs.rows import Version

POLL_SECONDS = 0.2
_log = structlog.get_logger("api.waiting.notifier")

P = ParamSpec("P")
T = TypeVar("T")


class Feed(Protocol):
    """What the repository tells of jobs' versions."""

    def changes_since(self, horizon: int | None) -> News:
        """What changed since an earlier answer gave this horizon; None: nothing, but from now on."""
        ...

    def versions(self, job_ids: Sequence[str]) -> Mapping[str, Version]:
        """The versions of these jobs as they are now, without those that are gone."""
        ...


class Watch:
    """What is known of one job, shared by all who wait for it; `version` is None until it was looked at."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.watchers = 0
        self.version: Version | None = None
        self.looked_at = False
        self.gone = False
        self.stopped = False
        self._changed = asyncio.Event()
        self._loads: dict[object, asyncio.Task[Any]] = {}

    def update(self, version: Version | None) -> None:
        """Take in what the poller saw, and wake the waiters if it is new: changes may be told twice."""
        if self.gone or not _is_news(self.version, version):
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


def _is_news(known: Version | None, told: Version | None) -> bool:
    return known is None or told is None or told.version > known.version


class Notifier:
    """Owner of the watches and of the poller.

    Args:
        feed: the repository.
        poll_seconds: pause between two polls.
    """

    def __init__(self, feed: Feed, poll_seconds: float = POLL_SECONDS) -> None:
        self._feed, self._pause = feed, poll_seconds
        self._before: News | None = None
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
        while not self.closing:
            if not self._watches:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                await self._poll()
            except Exception as error:  # a database that restarts must not end the poller
                _log.warning("poll_failed", error=type(error).__name__)
            await asyncio.sleep(self._pause)

    async def _poll(self) -> None:
        """Tell what changed, then look at the jobs that nobody has looked at yet.

        In this order nothing is missed: what changes after the look is in the next answer of the feed. The
        place in the feed moves on only when both have worked.
        """
        before = self._before
        news = await self._ask(self._feed.changes_since, None if before is None else before.horizon)
        if before is None or _may_lack_some(before, news):
            for watch in self._watches.values():
                watch.looked_at = False
        for job_id, version in news.versions.items():
            self._tell(job_id, version)
        unseen = [watch.job_id for watch in self._watches.values() if not watch.looked_at]
        if unseen:
            found = await self._ask(self._feed.versions, unseen)
            for job_id in unseen:
                self._tell(job_id, found.get(job_id), looked_at=True)
        self._before = news

    async def _ask(self, question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: question(*args, **kwargs))

    def _tell(self, job_id: str, version: Version | None, *, looked_at: bool = False) -> None:
        watch = self._watches.get(job_id)
        if watch is not None:
            watch.looked_at = watch.looked_at or looked_at
            watch.update(version)

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


def _may_lack_some(before: News, news: News) -> bool:
    """Whether changes between two answers may have been forgotten, or the database was set back."""
    silence = (news.asked_at - before.asked_at) / 1000
    return silence > PATIENCE_SECONDS or news.horizon < before.horizon
