"""What a model answers to BBQ's questions: accuracy, and how far errors and answers follow stereotypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.results.changes import Outcome
from optipfair_engine.bias.results.grouped import GroupedScores
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.scores import Metric

#: The measures, as metrics name them.
MEASURES = ("accuracy", "accuracy_amb", "accuracy_dis", "s_dis", "s_amb")


@dataclass(frozen=True)
class Answers:
    """Measures of some items, in percent; None where no item says anything of one.

    ``s_dis`` and ``s_amb`` lie between −100 (always against the stereotype) and 100 (always with it).
    """

    items: int
    templates: int
    measures: Mapping[str, Interval | None]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {name: None if value is None else value.as_dict() for name, value in self.measures.items()}
        return {"items": self.items, "templates": self.templates, **found}

    def metrics(self) -> tuple[tuple[str, Metric], ...]:
        """Names and values."""
        return tuple(self.measures.items())


@dataclass(frozen=True)
class AnswerScores(GroupedScores[Answers]):
    """BBQ's measures: overall and by category."""


@dataclass(frozen=True)
class Chosen:
    """What was answered, for each item: counts that the measures are made of, its category, its cluster."""

    counts: npt.NDArray[np.float64]
    categories: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class AnswerResult:
    """The scores, and the answers that a comparison needs."""

    scores: AnswerScores
    chosen: Chosen


@dataclass(frozen=True)
class AnswerChanges:
    """How much each measure changed, in points, overall and by category.

    ``outcome`` is that of ``distance``, the change of what ``judged`` names: more is worse.
    """

    margin: float
    outcome: Outcome
    distance: Interval | None
    overall: Mapping[str, Interval | None]
    categories: Mapping[str, Mapping[str, Interval | None]]
    warnings: tuple[str, ...] = ()
    judged: str = "|s_amb|"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""

        def plain(changes: Mapping[str, Interval | None]) -> dict[str, Any]:
            return {name: None if value is None else value.as_dict() for name, value in changes.items()}

        return {
            "margin": self.margin,
            "outcome": self.outcome,
            "distance": None if self.distance is None else self.distance.as_dict(),
            "overall": plain(self.overall),
            "categories": {name: plain(changes) for name, changes in self.categories.items()},
            "warnings": list(self.warnings),
        }

    def metrics(self) -> Iterator[tuple[str | None, str, Interval | float | str | None]]:
        """(Category, name, value) of each metric of the change."""
        yield None, "outcome", self.outcome
        for category, changes in ((None, self.overall), *self.categories.items()):
            yield from ((category, f"{name}_change", value) for name, value in changes.items())
