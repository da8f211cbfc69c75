"""A stage of a job and its expected cost, and what stages have cost on this worker."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.log import logger

#: In the work folder: what stages have cost here.
COSTS_FILE = "stage_costs.json"
#: How much the newest job counts in a cost that is known already.
_WEIGHT_OF_NEWEST = 0.5
#: A stage that took no time at all is still one that was passed.
_LEAST_SECONDS = 0.05


@dataclass(frozen=True)
class Stage:
    """One time that a job passes a stage: its name in reports, and the key under which its cost is kept.

    Attributes:
        name: as the engine reports it, in a pipeline behind its step's name.
        key: what costs are kept by.
        guess: seconds on two ordinary cores.
        learns: whether what it took says what such a stage takes on this worker.
        scales: whether it is as slow as all else on a slow machine; what has a limit of its own isn't.
    """

    name: str
    key: str
    guess: float
    learns: bool = True
    scales: bool = True


@dataclass
class StageCosts:
    """What stages have cost on this worker, kept in its work folder; a file that can't be read is ignored."""

    file: Path | None = None
    _known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, work_dir: Path) -> StageCosts:
        """The costs as an earlier job left them."""
        file = work_dir / COSTS_FILE
        try:
            stored = json.loads(file.read_text())
            return cls(file, {str(key): float(value) for key, value in stored.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls(file)

    def cost(self, stage: Stage) -> float:
        """Seconds that a stage is expected to take."""
        return stage.guess * (self._known.get(stage.key, 1.0) if stage.learns else 1.0)

    def learn(self, spent: Mapping[Stage, float]) -> None:
        """Take over what the stages of a job that has succeeded took, as multiples of their guesses.

        Multiples, because a guess knows the model and how much text there is, and the next job may have more.
        """
        for stage, seconds in spent.items():
            if stage.learns:
                newest = max(seconds, _LEAST_SECONDS) / stage.guess
                before = self._known.get(stage.key, newest)
                self._known[stage.key] = before + _WEIGHT_OF_NEWEST * (newest - before)
        if self.file is None:
            return
        try:
            temporary = self.file.with_suffix(f".{os.getpid()}.tmp")  # workers may share a folder
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self.file)
        except OSError:  # guesses are good enough without it
            logger.warning("stage_costs.not_written", exc_info=True)
