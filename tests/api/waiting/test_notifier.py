"""The poller by itself: what it asks for, and that it misses nothing when the feed fails or falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from api.waiting.notifier import Notifier
from jobs.repository.whole.feed import PATIENCE_SECONDS, News
from jobs.rows import Version


@dataclass
class ScriptedFeed:
    """A feed that a test fills and breaks."""

    jobs: dict[str, Version] = field(default_factory=dict)
    told: dict[str, Version | None] = field(default_factory=dict)
    broken: bool = False
    clock_ms: int = 0
    looks: list[int] = field(default_factory=list)
    asked: int = 0

    def changes_since(self, horizon: int | None) -> News:
        """What was put into `told`, once."""
        self.asked += 1
        if self.broken:
            raise ConnectionError
        versions, self.told = ({}, self.told) if horizon is None else (self.told, {})
        return News(1, self.clock_ms, versions)

    def versions(self, job_ids: Sequence[str]) -> Mapping[str, Version]:
        """What is in `jobs`."""
        self.looks.append(len(job_ids))
        return {job_id: self.jobs[job_id] for job_id in job_ids if job_id in self.jobs}

    async def rounds(self, number: int = 2) -> None:
        """Let the poller ask so often."""
        wanted = self.asked + number
        while self.asked < wanted:
            await asyncio.sleep(0.001)


def new(number: int) -> Version:
    return Version(number, number, False)


def test_a_job_is_looked_at_once_and_then_told_of() -> None:
    feed = ScriptedFeed({"a": new(1)})

    async def story() -> bool:
        notifier = Notifier(feed, 0.001)
        with notifier.watch("a") as watch:
            await feed.rounds()
            feed.told = {"a": new(2), "unwatched": new(5)}
            reached = await watch.until_version(1, 5)
        await notifier.close()
        return reached

    assert asyncio.run(story())
    assert feed.looks == [1]


def test_a_change_that_is_told_late_or_twice_wakes_nobody() -> None:
    feed = ScriptedFeed({"a": new(5)})

    async def story() -> bool:
        notifier = Notifier(feed, 0.001)
        with notifier.watch("a") as watch:
            await watch.until_version(4, 5)
            feed.told = {"a": new(4)}
            woken = await watch.changed(0.05)
        await notifier.close()
        return woken

    assert not asyncio.run(story())


def test_after_a_silence_every_job_is_looked_at_again() -> None:
    feed = ScriptedFeed({"a": new(1)})

    async def story() -> bool:
        notifier = Notifier(feed, 0.001)
        with notifier.watch("a") as watch:
            await feed.rounds()
            feed.broken = True
            await feed.rounds()
            feed.jobs["a"] = new(2)  # a change that the feed has forgotten when it answers again
            feed.clock_ms += round(PATIENCE_SECONDS * 1000) + 1
            feed.broken = False
            reached = await watch.until_version(1, 5)
        await notifier.close()
        return reached

    assert asyncio.run(story())
    assert len(feed.looks) == 2


def test_a_job_that_is_gone_lets_its_waiters_go() -> None:
    feed = ScriptedFeed({"a": new(1)})

    async def story() -> tuple[bool, bool]:
        notifier = Notifier(feed, 0.001)
        with notifier.watch("a") as watch:
            await feed.rounds()
            feed.told = {"a": None}
            reached = await watch.until_version(1, 5)
        await notifier.close()
        return reached, watch.gone

    assert asyncio.run(story()) == (True, True)
