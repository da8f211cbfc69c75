"""What one of a job's several suites found, under the catalogue's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from optipfair_engine.bias.results.answers import AnswerChanges, AnswerScores
from optipfair_engine.bias.results.changes import Change, PreferenceComparison
from optipfair_engine.bias.results.differences import Difference
from optipfair_engine.bias.results.gaps import GapScores
from optipfair_engine.bias.results.hurtful import HurtfulScores
from optipfair_engine.bias.results.intervals import Interval, named
from optipfair_engine.bias.results.scores import SuiteScores
from optipfair_engine.options.suites import baselines, entry_of

#: What a suite of the catalogue gives.
NamedScores: TypeAlias = SuiteScores | GapScores | AnswerScores | HurtfulScores


@dataclass(frozen=True)
class SuiteResult:
    """The scores of the catalogue's suite ``name``; with a baseline, its scores and what changed from it."""

    name: str
    scores: NamedScores
    baseline: NamedScores | None = None
    comparison: PreferenceComparison | AnswerChanges | None = None

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


@dataclass(frozen=True)
class PairSuiteResult:
    """What the pairs of the suite ``name`` found: differences overall and by category, and their changes.

    ``pairs`` and ``templates`` count the suite's; categories are as the catalogue names them.
    """

    name: str
    pairs: int
    templates: int
    overall: Difference
    categories: Mapping[str, Difference]
    change: Change | None = None
    category_changes: Mapping[str, Change] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found: dict[str, Any] = {
            "pairs": self.pairs,
            "templates": self.templates,
            "overall": self.overall.as_dict(),
            "categories": {name: entry.as_dict() for name, entry in self.categories.items()},
        }
        if self.change is not None:
            changes = {name: change.as_dict() for name, change in self.category_changes.items()}
            found["change"] = {"overall": self.change.as_dict(), "categories": changes}
        return found

    def flat(self) -> dict[str, object]:
        """Flat metrics: ``suite.metric`` and ``suite.category.metric``, as the catalogue names them."""
        entry = entry_of(self.name)
        flat: dict[str, object] = {f"{self.name}.pairs": self.pairs, f"{self.name}.templates": self.templates}
        flat |= _chosen(self.name, self.overall.flat(), entry.metrics)
        for category, difference in self.categories.items():
            flat |= _chosen(f"{self.name}.{category}", difference.flat(), entry.category_metrics)
        for category, change in {"": self.change, **self.category_changes}.items():
            if change is not None:
                place = f"{self.name}.{category}" if category else self.name
                flat[f"{place}.outcome"] = change.outcome
                flat |= named(f"{place}.bias_change", change.relative_change)
        return flat


def _chosen(place: str, metrics: Mapping[str, object], wanted: Sequence[str]) -> dict[str, object]:
    """Those of the flat metrics that are wanted, with their limits, under the place's name."""
    return {
        f"{place}.{name}": value
        for name, value in metrics.items()
        if name.removesuffix("_low").removesuffix("_high") in wanted
    }


def _named(
    suite: str, category: str | None, metric: str, value: Interval | float | str | None
) -> dict[str, object]:
    name = ".".join(part for part in (suite, category, metric) if part is not None)
    return dict(value.named(name)) if isinstance(value, Interval) else {name: value}
