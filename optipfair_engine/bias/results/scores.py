"""What a model prefers: the scores of CrowS-Pairs and StereoSet, in percent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.options.suites import entry_of

#: A metric of a suite: with its interval, or a number that is exact.
Metric: TypeAlias = Interval | float | None


@dataclass(frozen=True)
class Share:
    """A share of ``items``, in percent."""

    interval: Interval
    items: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.interval.as_dict(), "items": self.items}


@dataclass(frozen=True)
class CrowsPairsScores:
    """How often the more stereotyping sentence of CrowS-Pairs is the likelier one."""

    scoring: str
    items: int
    score: Share
    ties: int
    directions: Mapping[str, Share]
    categories: Mapping[str, Share]
    perplexity: float | None
    minimum_detectable: float | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "suite": "crows_pairs",
            "scoring": self.scoring,
            "items": self.items,
            "score": self.score.as_dict(),
            "ties": self.ties,
            "directions": {name: share.as_dict() for name, share in self.directions.items()},
            "categories": {name: share.as_dict() for name, share in self.categories.items()},
            "perplexity": self.perplexity,
            "minimum_detectable": self.minimum_detectable,
            "warnings": list(self.warnings),
        }

    def flat(self) -> dict[str, object]:
        """Flat metrics."""
        limits = self.score.interval.named("crows_pairs_score")
        return {"items": self.items, **self.values(), **limits}

    def values(self) -> dict[str, object]:
        """The scores without limits, as a baseline reports them."""
        return {"crows_pairs_score": self.score.interval.value, "perplexity": self.perplexity}

    def metrics(self) -> Iterator[tuple[str | None, str, Metric]]:
        """(Category, name, value) of each metric, as the catalogue names them."""
        yield from ((None, "items", self.items), (None, "score", self.score.interval))
        yield None, "perplexity", self.perplexity
        for name, share in self.categories.items():
            yield entry_of("crows_pairs").word_of(name), "score", share.interval

    @property
    def language(self) -> tuple[str, float | None]:
        """What says how well the model knows its language: the name of the measure, and its value."""
        return "perplexity", self.perplexity


@dataclass(frozen=True)
class StereoEntry:
    """ss, lms and icat of some items, averaged over targets, and over items (``…_micro``)."""

    items: int
    targets: int
    ss: Interval
    lms: Interval
    icat: Interval
    ss_micro: Interval
    lms_micro: Interval

    def metrics(self) -> tuple[tuple[str, Interval], ...]:
        """Names and values."""
        return ("ss", self.ss), ("lms", self.lms), ("icat", self.icat)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "items": self.items,
            "targets": self.targets,
            **self.ss.named("ss"),
            **self.lms.named("lms"),
            **self.icat.named("icat"),
            "ss_micro": self.ss_micro.as_dict(),
            "lms_micro": self.lms_micro.as_dict(),
        }


@dataclass(frozen=True)
class StereoSetScores:
    """StereoSet's scores: overall, by kind of item, by category."""

    scoring: str
    items: int
    overall: StereoEntry
    kinds: Mapping[str, StereoEntry]
    categories: Mapping[str, StereoEntry]
    minimum_detectable: float | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "suite": "stereoset",
            "scoring": self.scoring,
            "items": self.items,
            "overall": self.overall.as_dict(),
            "kinds": {name: entry.as_dict() for name, entry in self.kinds.items()},
            "categories": {name: entry.as_dict() for name, entry in self.categories.items()},
            "minimum_detectable": self.minimum_detectable,
            "warnings": list(self.warnings),
        }

    def flat(self) -> dict[str, object]:
        """Flat metrics."""
        limits = {**self.overall.ss.named("stereoset_ss"), **self.overall.lms.named("stereoset_lms")}
        return {"items": self.items, **limits, **self.overall.icat.named("stereoset_icat")}

    def values(self) -> dict[str, object]:
        """The scores without limits, as a baseline reports them."""
        overall = self.overall
        return {
            "stereoset_ss": overall.ss.value,
            "stereoset_lms": overall.lms.value,
            "stereoset_icat": overall.icat.value,
        }

    def metrics(self) -> Iterator[tuple[str | None, str, Metric]]:
        """(Category, name, value) of each metric, as the catalogue names them."""
        yield None, "items", self.items
        yield from ((None, *metric) for metric in self.overall.metrics())
        for name, entry in {**self.kinds, **self.categories}.items():
            category = entry_of("stereoset").word_of(name)
            yield from ((category, *metric) for metric in entry.metrics())

    @property
    def language(self) -> tuple[str, float | None]:
        """What says how well the model knows its language: the name of the measure, and its value."""
        return "lms", self.overall.lms.value


SuiteScores: TypeAlias = CrowsPairsScores | StereoSetScores


@dataclass(frozen=True)
class Preferences:
    """Per item: whether the stereotype was preferred, the item's category, and its cluster, if any."""

    stereotype: npt.NDArray[np.bool_]
    categories: tuple[str, ...]
    clusters: tuple[str, ...] | None = None


Scores_co = TypeVar("Scores_co", covariant=True)


@dataclass(frozen=True)
class BehaviourResult(Generic[Scores_co]):
    """A suite's scores, and the preferences that a comparison needs."""

    scores: Scores_co
    preferences: Preferences
