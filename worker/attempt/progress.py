"""From the engine's reports to a job's progress: one rising fraction over all stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.rows import Progress

#: The engine's stages in the order in which a job passes them, with what share of its time each tends to
#: take.
STAGE_WEIGHTS = {
    "load": 10,
    "calibrate": 25,
    "importance": 25,
    "select": 10,
    "evaluate": 20,
    "prune": 10,
    "heal": 25,
    "bias": 50,
    "plot": 5,
    "save": 20,
    "verify": 10,
}
STAGES_OF_KIND: dict[str, Sequence[str]] = {
    "analyze": ("load", "plot"),
    "importance": ("load", "importance", "plot"),
    "prune": (
        "load",
        "calibrate",
        "importance",
        "select",
        "evaluate",
        "prune",
        "heal",
        "plot",
        "save",
        "verify",
    ),
    "bias": ("load", "bias", "plot"),
    "evaluate": ("load", "evaluate", "plot"),
}


def stages_of(kind: str, spec: Mapping[str, Any]) -> list[str]:
    """The stages that a job passes, in order; a pipeline's are `step:stage`."""
    if kind != "pipeline":
        return list(STAGES_OF_KIND[kind])
    return [f"{step['name']}:{stage}" for step in spec["steps"] for stage in STAGES_OF_KIND[step["kind"]]]


def _weight(stage: str) -> int:
    return STAGE_WEIGHTS[stage.rpartition(":")[2]]


#: A stage of more steps than this (batches, not layers) is reported at this many even points.
MAX_EVENTS_PER_STAGE = 200


@dataclass
class ProgressTracker:
    """Turns `(stage, done, total, message)` into `Progress`; None for a report that may be left out."""

    stages: Sequence[str]
    clock: Callable[[], float] = time.monotonic
    _fraction: float = 0.0
    _seen: dict[str, int] = field(default_factory=dict)
    _started: float | None = None

    def update(self, stage: str, done: int, total: int, message: str) -> Progress | None:
        """Take one report; every step of a stage of up to `MAX_EVENTS_PER_STAGE` steps counts."""
        if self._started is None:
            self._started = self.clock()
        step = self._step(done, total)
        if self._seen.get(stage) == step and done != total:
            return None
        self._seen[stage] = step
        self._fraction = max(self._fraction, min(self._position(stage, done, total), 0.999))
        return Progress(round(self._fraction, 4), stage, message, self._eta())

    @staticmethod
    def _step(done: int, total: int) -> int:
        return done if total <= MAX_EVENTS_PER_STAGE else done * MAX_EVENTS_PER_STAGE // total

    def _position(self, stage: str, done: int, total: int) -> float:
        whole = sum(_weight(name) for name in self.stages)
        if stage not in self.stages:
            return self._fraction
        before = sum(_weight(name) for name in self.stages[: list(self.stages).index(stage)])
        inside = _weight(stage) * (done / total if total > 0 else 0.0)
        return (before + inside) / whole

    def _eta(self) -> float | None:
        elapsed = self.clock() - (self._started or 0.0)
        if self._fraction < 0.05 or elapsed < 1.0:
            return None
        return round(elapsed * (1.0 - self._fraction) / self._fraction, 1)
