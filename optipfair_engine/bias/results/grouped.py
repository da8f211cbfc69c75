"""What the suites that are measured overall and by category have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from optipfair_engine.bias.results.scores import Metric
from optipfair_engine.options.suites import entry_of


class Measured(Protocol):
    """What was measured on some items."""

    @property
    def items(self) -> int:
        """How many items."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""

    def metrics(self) -> Sequence[tuple[str, Metric]]:
        """Names and values."""


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True)
class GroupedScores(Generic[M]):
    """The measures of a suite: overall and by category."""

    suite: str
    scoring: str
    overall: M
    categories: Mapping[str, M]
    perplexity: float | None
    warnings: tuple[str, ...]

    @property
    def items(self) -> int:
        """How many items the overall measure is of."""
        return self.overall.items

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "suite": self.suite,
            "scoring": self.scoring,
            "overall": self.overall.as_dict(),
            "categories": {name: found.as_dict() for name, found in self.categories.items()},
            "perplexity": self.perplexity,
            "warnings": list(self.warnings),
        }

    def metrics(self) -> Iterator[tuple[str | None, str, Metric]]:
        """(Category, name, value) of each metric, as the catalogue names them."""
        yield None, "items", self.items
        yield None, "perplexity", self.perplexity
        yield from ((None, *metric) for metric in self.overall.metrics())
        for name, found in self.categories.items():
            category = entry_of(self.suite).word_of(name)
            yield from ((category, *metric) for metric in found.metrics())

    @property
    def language(self) -> tuple[str, float | None]:
        """What says how well the model knows its language: the name of the measure, and its value."""
        return "perplexity", self.perplexity
