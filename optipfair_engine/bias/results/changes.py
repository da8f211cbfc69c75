"""What changed from one model to another, on the same pairs or on the same items of a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from optipfair_engine.bias.results.intervals import Interval, named

Outcome = Literal["better", "worse", "inconclusive"]


def _json(interval: Interval | None) -> dict[str, float | None] | None:
    return interval.as_dict() if interval is not None else None


@dataclass(frozen=True)
class Change:
    """A mean difference in both models; no ``delta`` where the two can't be compared."""

    before: float | None
    after: float | None
    delta: Interval | None
    relative_change: Interval | None
    outcome: Outcome | Literal["not_comparable"]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "before": self.before,
            "after": self.after,
            "delta": _json(self.delta),
            "relative_change": _json(self.relative_change),
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class PairDelta:
    """The overall change of one pair."""

    pair: str
    before: float
    after: float
    delta: float


@dataclass(frozen=True)
class Compared:
    """The components and the layers of both models that entered ``overall``."""

    components: tuple[str, ...]
    layers_before: tuple[int, ...]
    layers_after: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: list(values) for name, values in asdict(self).items()}


@dataclass(frozen=True)
class ProfileComparison:
    """Changes of the mean difference: overall, by component, of every pair."""

    margin: float
    compared: Compared
    overall: Change
    components: Mapping[str, Change]
    pairs: tuple[PairDelta, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "margin": self.margin,
            "compared": self.compared.as_dict(),
            "overall": self.overall.as_dict(),
            "components": {name: change.as_dict() for name, change in self.components.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
            "warnings": list(self.warnings),
        }

    def flat(self) -> dict[str, object]:
        """Flat metrics; ``bias_change`` is relative."""
        return {"outcome": self.overall.outcome, **named("bias_change", self.overall.relative_change)}


@dataclass(frozen=True)
class PreferenceChange:
    """Items that changed sides, and by how much the share moved away from one half."""

    items: int
    clusters: int
    before: float
    after: float
    to_stereotype: int
    from_stereotype: int
    p_value: float
    distance_from_half: Interval
    outcome: Outcome
    p_holm: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {**asdict(self), "distance_from_half": self.distance_from_half.as_dict()}
        if self.p_holm is None:
            del found["p_holm"]
        return found


@dataclass(frozen=True)
class Language:
    """How well both models know their language: perplexity, or lms."""

    measure: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class PreferenceComparison:
    """Changes of which sentence is preferred: overall and by category."""

    margin: float
    overall: PreferenceChange
    categories: Mapping[str, PreferenceChange]
    language: Language | None = None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found: dict[str, Any] = {
            "margin": self.margin,
            "overall": self.overall.as_dict(),
            "categories": {name: change.as_dict() for name, change in self.categories.items()},
        }
        if self.language is not None:
            found.update(language=asdict(self.language), warnings=list(self.warnings))
        return found

    def flat(self) -> dict[str, object]:
        """Flat metrics; ``preference_change`` is that of the share's distance from one half, absolute."""
        overall = self.overall
        change = named("preference_change", overall.distance_from_half)
        return {"outcome": overall.outcome, **change, "mcnemar_p": overall.p_value}

    def metrics(self) -> Iterator[tuple[str | None, str, Interval | float | str]]:
        """(Category, name, value) of each metric of a suite's change."""
        yield None, "outcome", self.overall.outcome
        yield None, "mcnemar_p", self.overall.p_value
        yield None, "preference_change", self.overall.distance_from_half
        for name, change in self.categories.items():
            yield name, "preference_change", change.distance_from_half


Comparison: TypeAlias = ProfileComparison | PreferenceComparison
