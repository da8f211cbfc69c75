"""How much likelier the pronouns that fit a stereotype are: WinoBias and Winogender."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optipfair_engine.bias.results.grouped import GroupedScores
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.scores import Metric


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
class GapScores(GroupedScores[Gap]):
    """The gaps of a suite: overall, and by kind of item, gender of the stereotype, and occupation.

    ``correlation`` is that of an occupation's mean log p(female) − log p(male) with the percentage of women
    in it, where the suite says that.
    """

    correlation: Interval | None
    minimum_detectable: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        correlation = self.correlation.as_dict() if self.correlation is not None else None
        more = {"correlation": correlation, "minimum_detectable": self.minimum_detectable}
        return {**super().as_dict(), **more}

    def metrics(self) -> Iterator[tuple[str | None, str, Metric]]:
        """(Category, name, value) of each metric, as the catalogue names them."""
        yield from super().metrics()
        if self.correlation is not None:
            yield None, "correlation", self.correlation
