"""From the engine's reports to a job's progress: one rising fraction over all stages, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.rows import Progress
from worker.attempt.stages import Stage, StageCosts

#: A stage of more steps than this (batches, not layers) is reported at this many even points.
MAX_EVENTS_PER_STAGE = 200
#: Nothing is said of the time that is left before this much of the work and this many seconds.
_LEAST_FRACTION, _LEAST_SECONDS = 0.02, 1.0


@dataclass
class ProgressTracker:
    """Turns `(stage, done, total, message)` into `Progress`; None for a report that may be left out."""

    stages: Sequence[Stage]
    costs: StageCosts = field(default_factory=StageCosts)
    clock: Callable[[], float] = time.monotonic
    _fraction: float = 0.0
    _seen: dict[str, int] = field(default_factory=dict)
    _now: float | None = None
    _started: float = 0.0
    _shares: dict[int, float] = field(default_factory=dict)
    _spent: dict[int, float] = field(default_factory=dict)

    def update(self, stage: str, done: int, total: int, message: str) -> Progress | None:
        """Take one report; every step of a stage of up to `MAX_EVENTS_PER_STAGE` steps counts."""
        self._account(stage, done, total)
        step = self._step(done, total)
        if self._seen.get(stage) == step and done != total:
            return None
        self._seen[stage] = step
        self._fraction = max(self._fraction, min(self._position(), 0.999))
        return Progress(round(self._fraction, 4), stage, message, self._eta())

    def spent(self) -> dict[Stage, float]:
        """Seconds that each finished stage took."""
        return {self.stages[number]: self._spent[number] for number in self._shares if self._is_done(number)}

    @staticmethod
    def _step(done: int, total: int) -> int:
        return done if total <= MAX_EVENTS_PER_STAGE else done * MAX_EVENTS_PER_STAGE // total

    def _account(self, stage: str, done: int, total: int) -> None:
        """Add the time since the last report, and the share that is done, to the stage that they are of."""
        now = self.clock()
        if self._now is None:
            self._now = self._started = now
        since, self._now = now - self._now, now
        number = self._number(stage, done, total)
        if number is None:
            return
        self._spent[number] = self._spent.get(number, 0.0) + since
        share = done / total if total > 0 else 1.0
        # layers that go may be counted before those that stay
        self._shares[number] = max(self._shares.get(number, 0.0), min(share, 1.0))

    def _number(self, name: str, done: int, total: int) -> int | None:
        """Which of the stages of that name is meant: the first that isn't finished, else the last."""
        numbers = [number for number, stage in enumerate(self.stages) if stage.name == name]
        opened = [number for number in numbers if not self._is_done(number)]
        return opened[0] if opened else (numbers[-1] if numbers else None)

    def _is_done(self, number: int) -> bool:
        return self._shares.get(number, 0.0) >= 1.0

    def _position(self) -> float:
        """The share of the expected cost that is behind."""
        whole = sum(self._cost(number) for number in self._passed())
        behind = sum(self._cost(number) * self._shares.get(number, 0.0) for number in self._passed())
        return behind / whole if whole > 0 else self._fraction

    def _passed(self) -> list[int]:
        """The stages that this job passes: all but those that it has left out so far."""
        newest = max(self._shares, default=0)
        return [number for number in range(len(self.stages)) if number >= newest or number in self._shares]

    def _cost(self, number: int) -> float:
        return self.costs.cost(self.stages[number])

    def _eta(self) -> float | None:
        """What is left of the stages that have begun, at their own pace, and of the others at the job's."""
        elapsed = (self._now or 0.0) - self._started
        if self._fraction < _LEAST_FRACTION or elapsed < _LEAST_SECONDS:
            return None
        begun = {n: share for n, share in self._shares.items() if share > 0 and self._spent.get(n, 0.0) > 0}
        if not begun:
            return None
        ahead = (number for number in self._passed() if number not in begun and not self._is_done(number))
        left = sum(self._cost(number) * self._pace(number, begun) for number in ahead)
        left += sum(self._spent[number] * (1 - share) / share for number, share in begun.items())
        return round(left, 1)

    def _pace(self, number: int, begun: Mapping[int, float]) -> float:
        """Seconds for an expected second: of this stage's earlier times, else of all that has begun.

        What doesn't compute with the model (drawing) goes its own pace, however large the model is.
        """
        stage = self.stages[number]
        like = [n for n in begun if self.stages[n].name == stage.name]
        if not like and not stage.scales:
            return 1.0
        chosen = like or list(begun)
        expected = sum(self._cost(n) * begun[n] for n in chosen)
        return sum(self._spent[n] for n in chosen) / expected if expected > 0 else 1.0
