"""From the engine's reports to a job's progress: one rising fraction over all stages, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from jobs.rows import Progress
from worker.attempt.costs import Stage, StageCosts

#: A stage of more steps than this (batches, not layers) is reported at this many even points.
MAX_EVENTS_PER_STAGE = 200
#: Nothing is said of the time that is left in the first seconds.
_LEAST_SECONDS = 1.0
#: How much of a job, as expected, counts as having gone at the expected pace before anything is known.
_TRUST = 0.02
#: What is still expected of a step that has taken longer than expected, of the time that it took so far.
_OVERDUE = 0.3

#: Of a stage that is late: the seconds that were expected of it, and those that it has taken so far.
_Late: TypeAlias = tuple[float, float]
_NOT_LATE: _Late = (0.0, 0.0)


@dataclass
class _Seen:
    """What has been seen of one stage: the share that is done, the share of a step, and what it took."""

    share: float = 0.0
    step: float = 1.0
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return self.share >= 1.0


@dataclass
class ProgressTracker:
    """Turns `(stage, done, total, message)` into `Progress`; None for a report that may be left out.

    It is made when the attempt begins: what is done until the first report is counted to the first stage.
    """

    stages: Sequence[Stage]
    costs: StageCosts = field(default_factory=StageCosts)
    clock: Callable[[], float] = time.monotonic
    _fraction: float = 0.0
    _reported: dict[str, int] = field(default_factory=dict)
    _now: float = 0.0
    _started: float = 0.0
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._now = self._started = self.clock()

    def update(self, stage: str, done: int, total: int, message: str) -> Progress | None:
        """Take one report; every step of a stage of up to `MAX_EVENTS_PER_STAGE` steps counts."""
        self._account(stage, done, total)
        step = self._step(done, total)
        if self._reported.get(stage) == step and done != total:
            return None
        self._reported[stage] = step
        self._fraction = max(self._fraction, min(self._position(), 0.999))
        return Progress(round(self._fraction, 4), stage, message, self.eta())

    def spent(self) -> dict[Stage, float]:
        """Seconds that each finished stage took."""
        return {self.stages[number]: seen.seconds for number, seen in self._seen.items() if seen.done}

    def eta(self) -> float | None:
        """The seconds that are left, also while nothing is reported; None in its first second.

        What is left of the stages that have begun goes at their own pace, and the others go at the job's.
        """
        now = self.clock()
        if now - self._started < _LEAST_SECONDS:
            return None
        under_way, waiting = self._under_way(), now - self._now
        left = sum(
            self._left_of(number, waiting if number == under_way else 0.0, self._late(under_way, waiting))
            for number in self._passed()
        )
        return round(left, 1)

    @staticmethod
    def _step(done: int, total: int) -> int:
        return done if total <= MAX_EVENTS_PER_STAGE else done * MAX_EVENTS_PER_STAGE // total

    def _account(self, stage: str, done: int, total: int) -> None:
        """Add the time since the last report, and the share that is done, to the stage that they are of."""
        now = self.clock()
        since, self._now = now - self._now, now
        number = self._number(stage)
        if number is None:
            return
        seen = self._seen.setdefault(number, _Seen())
        seen.seconds += since
        share = done / total if total > 0 else 1.0
        # layers that go may be counted before those that stay
        seen.share = max(seen.share, min(share, 1.0))
        seen.step = 1.0 / max(total, 1)

    def _number(self, name: str) -> int | None:
        """Which of the stages of that name is meant: the first that isn't finished, else the last."""
        numbers = [number for number, stage in enumerate(self.stages) if stage.name == name]
        opened = [number for number in numbers if not self._is_done(number)]
        return opened[0] if opened else (numbers[-1] if numbers else None)

    def _is_done(self, number: int) -> bool:
        return number in self._seen and self._seen[number].done

    def _position(self) -> float:
        """The share of the expected cost that is behind."""
        passed = list(self._passed())
        whole = sum(self._cost(number) for number in passed)
        behind = sum(self._cost(number) * self._share(number) for number in passed)
        return behind / whole if whole > 0 else self._fraction

    def _share(self, number: int) -> float:
        return self._seen[number].share if number in self._seen else 0.0

    def _passed(self) -> Iterator[int]:
        """The stages that this job passes: all but those that it has left out so far."""
        newest = max(self._seen, default=0)
        return (number for number in range(len(self.stages)) if number >= newest or number in self._seen)

    def _under_way(self) -> int | None:
        """The stage that is being worked on: the newest that has begun, or the one behind it."""
        newest = max(self._seen, default=0)
        return next(
            (number for number in self._passed() if number >= newest and not self._is_done(number)), None
        )

    def _cost(self, number: int) -> float:
        return self.costs.cost(self.stages[number])

    def _late(self, number: int | None, waiting: float) -> _Late:
        """What a stage says of the job's pace that has taken too long for the first share of it."""
        if number is None or self._share(number) > 0:
            return _NOT_LATE
        cost = self._cost(number)
        # what is not late yet says nothing: it may still be as slow as all that has begun
        return (cost, waiting) if waiting > cost * self._pace(number, _NOT_LATE) else _NOT_LATE

    def _left_of(self, number: int, waiting: float, late: _Late) -> float:
        """What is left of one stage that has reported nothing for so many seconds."""
        seen = self._seen.get(number, _Seen())
        if seen.done:
            return 0.0
        known = seen.share > 0
        whole = seen.seconds / seen.share if known else self._cost(number) * self._pace(number, late)
        left, step = whole * (1 - seen.share), whole * seen.step
        # where the very first step is late, all that follow may be as slow
        slower = 1.0 if known else max(1.0, waiting / max(step, 0.1))
        return (left - step) * slower + max(step - waiting, _OVERDUE * waiting)

    def _pace(self, number: int, late: _Late) -> float:
        """Seconds for an expected second: of this stage's earlier times, else of all that has begun.

        What has a limit of its own takes that, however slow the machine is.
        """
        stage = self.stages[number]
        like = [n for n in self._seen if self.stages[n].name == stage.name and self._is_done(n)]
        if like:
            expected = sum(self._cost(n) for n in like)
            return sum(self._seen[n].seconds for n in like) / expected if expected > 0 else 1.0
        if not stage.scales:
            return 1.0
        begun = [n for n, seen in self._seen.items() if seen.share > 0 and self.stages[n].scales]
        trusted = _TRUST * sum(self._cost(n) for n in range(len(self.stages)))
        expected = sum(self._cost(n) * self._seen[n].share for n in begun) + trusted + late[0]
        spent = sum(self._seen[n].seconds for n in begun) + trusted + late[1]
        return spent / expected if expected > 0 else 1.0
