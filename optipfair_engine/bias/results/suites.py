"""What one of a job's several suites found, under the catalogue's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from optipfair_engine.bias.results.changes import PreferenceComparison
from optipfair_engine.bias.results.gaps import GapScores
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.scores import SuiteScores
from optipfair_engine.options.suites import baselines, entry_of

#: What a suite of the catalogue gives.
NamedScores: TypeAlias = SuiteScores | GapScores


@dataclass(frozen=True)
class SuiteResult:
    """The scores of the catalogue's suite ``name``; with a baseline, its scores and what changed from it."""

    name: str
    scores: NamedScores
    baseline: NamedScores | None = None
    comparison: PreferenceComparison | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know of the suite, and of the change."""
        return (*self.scores.warnings, *(self.comparison.warnings if self.comparison is not None else ()))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = {"scores": self.scores, "baseline": self.baseline, "comparison": self.comparison}
        return {name: part.as_dict() for name, part in parts.items() if part is not None}

    def flat(self) -> dict[str, object]:
        """Flat metrics: ``suite.metric`` and ``suite.category.metric``, each with its interval if it has one.

        A baseline's values are ``suite.metric_baseline``; what changed is named as the catalogue says.
        """
        flat: dict[str, object] = {}
        for category, metric, value in self.scores.metrics():
            flat |= _named(self.name, category, metric, value)
        if self.baseline is not None:
            beside = baselines(entry_of(self.name))
            for category, metric, value in self.baseline.metrics():
                if category is None and metric in beside:
                    number = value.value if isinstance(value, Interval) else value
                    flat[f"{self.name}.{metric}_baseline"] = number
        if self.comparison is not None:
            entry = entry_of(self.name)
            for category, metric, change in self.comparison.metrics():
                word = None if category is None else entry.word_of(category)
                flat |= _named(self.name, word, metric, change)
        return flat


def _named(
    suite: str, category: str | None, metric: str, value: Interval | float | str | None
) -> dict[str, object]:
    name = ".".join(part for part in (suite, category, metric) if part is not None)
    return dict(value.named(name)) if isinstance(value, Interval) else {name: value}
