"""Live fragments are made once for all who look at them, and end when the reader or the service does."""

from __future__ import annotations

import asyncio

from api.dashboard.feeds import Feeds


async def _yes() -> bool:
    return True


async def _no() -> bool:
    return False


def test_two_hundred_pages_cost_one_round_and_get_each_change() -> None:
    made, closing = 0, False

    async def make() -> str:
        nonlocal made
        made += 1
        return f"<p>{min(made, 2)}</p>"

    async def look(feeds: Feeds) -> list[bytes]:
        seen: list[bytes] = []
        async for chunk in feeds.follow("key", make, allowed=_yes, ends=lambda: closing, pause=0.05):
            seen += [chunk] if b"data:" in chunk else []
            if len(seen) == 2:
                break
        return seen

    async def run() -> list[list[bytes]]:
        feeds = Feeds()
        found = await asyncio.gather(*(look(feeds) for _ in range(200)))
        assert feeds.running == {}, "nobody looks any more, and it goes on"
        return found

    found = asyncio.run(run())
    assert all(b"<p>1</p>" in first and b"<p>2</p>" in second for first, second in found)
    assert made == 2


def test_who_may_no_longer_see_it_is_told_and_gets_nothing() -> None:
    async def make() -> str:
        return "secret"

    async def run() -> bytes:
        feeds = Feeds()
        return b"".join([chunk async for chunk in feeds.follow("key", make, allowed=_no, ends=lambda: False)])

    told = asyncio.run(run())
    assert b"event: signed-out" in told
    assert b"secret" not in told
