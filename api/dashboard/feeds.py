"""Fragments that many pages show alike: made once a round for all who look, and sent when they changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from jobs.logs import structlog

ROUND_SECONDS = 1.0
KEEPALIVE_SECONDS = 15.0
_log = structlog.get_logger("api.dashboard.feeds")
Make = Callable[[], Awaitable[str]]


@dataclass
class _Feed:
    make: Make
    text: str | None = None
    watchers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@dataclass
class Feeds:
    """The fragments that somebody looks at now, by a key that says all that they depend on."""

    running: dict[object, _Feed] = field(default_factory=dict)

    async def follow(
        self,
        key: object,
        make: Make,
        *,
        allowed: Callable[[], Awaitable[bool]],
        ends: Callable[[], bool],
        pause: float = ROUND_SECONDS,
    ) -> AsyncIterator[bytes]:
        """The fragment as server-sent events, now and after each change.

        Args:
            key: equal for pages that show the same; they share one round of `make`.
            make: the fragment as it is now.
            allowed: whether the reader may still see it; if not, the event `signed-out` is the last.
            ends: whether the service stops.
            pause: seconds between two rounds.
        """
        yield b"retry: 2000\n\n"
        feed = self.running.setdefault(key, _Feed(make))
        feed.watchers += 1
        if feed.task is None:
            feed.task = asyncio.create_task(self._rounds(feed, ends, pause))
        shown: str | None = None
        try:
            while not ends():
                changed = feed.changed
                if not await allowed():
                    yield format_sse_event(event="signed-out", data_str="{}")
                    return
                if feed.text is not None and feed.text != shown:
                    shown = feed.text
                    yield format_sse_event(event="content", data_str=shown)
                elif not await _set_within(changed, KEEPALIVE_SECONDS):
                    yield KEEPALIVE_COMMENT
        finally:
            feed.watchers -= 1
            if feed.watchers == 0:
                feed.task.cancel()
                self.running.pop(key, None)

    async def _rounds(self, feed: _Feed, ends: Callable[[], bool], pause: float) -> None:
        while not ends():
            try:
                text = await feed.make()
            except Exception as error:  # a database that restarts must not end the feed
                _log.warning("feed_failed", error=type(error).__name__)
            else:
                if text != feed.text:
                    feed.text = text
                    woken, feed.changed = feed.changed, asyncio.Event()
                    woken.set()
            await asyncio.sleep(pause)
        feed.changed.set()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
