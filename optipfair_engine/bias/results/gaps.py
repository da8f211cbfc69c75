"""How much likelier the pronouns that fit a stereotype are: WinoBias and Winogender."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.scores import Metric
from optipfair_engine.options.suites import entry_of


@dataclass(frozen=True)
class Gap:
    """The preference for the stereotype in some items.

    ``gap`` is how many percent of the items have the stereotyped sentence likelier, minus how many have the
    other one: 0 is neutral. ``log_odds`` is the mean of log p(pro) − log p(anti), in nats.
    """

    items: int
    templates: int
    gap: Interval
    log_odds: Interval

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        sizes = {"items": self.items, "templates": self.templates}
        return {**sizes, "gap": self.gap.as_dict(), "log_odds": self.log_odds.as_dict()}

    def metrics(self) -> tuple[tuple[str, Interval], ...]:
        """Names and values."""
        return ("gap", self.gap), ("log_odds", self.log_odds)


@dataclass(frozen=True)
class GapScores:
    """The gaps of a suite: overall, and by kind of item, gender of the stereotype, and occupation.

    ``correlation`` is that of an occupation's mean log p(female) − log p(male) with the percentage of women
    in it, where the suite says that.
    """

    suite: str
    scoring: str
    overall: Gap
    categories: Mapping[str, Gap]
    perplexity: float | None
    correlation: Interval | None
    minimum_detectable: float | None
    warnings: tuple[str, ...]

    @property
    def items(self) -> int:
        """How many items the overall gap is of."""
        return self.overall.items

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "suite": self.suite,
            "scoring": self.scoring,
            "overall": self.overall.as_dict(),
            "categories": {name: gap.as_dict() for name, gap in self.categories.items()},
            "perplexity": self.perplexity,
            "correlation": self.correlation.as_dict() if self.correlation is not None else None,
            "minimum_detectable": self.minimum_detectable,
            "warnings": list(self.warnings),
        }

    def metrics(self) -> Iterator[tuple[str | None, str, Metric]]:
        """(Category, name, value) of each metric, as the catalogue names them."""
        yield None, "items", self.items
        yield from ((None, *metric) for metric in self.overall.metrics())
        yield None, "perplexity", self.perplexity
        if self.correlation is not None:
            yield None, "correlation", self.correlation
        for name, gap in self.categories.items():
            category = entry_of(self.suite).word_of(name)
            yield from ((category, *metric) for metric in gap.metrics())

    @property
    def language(self) -> tuple[str, float | None]:
        """What says how well the model knows its language: the name of the measure, and its value."""
        return "perplexity", self.perplexity
