"""What changed, from one model to another, in how alike they continue the two prompts of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from optipfair_engine.bias.results.changes import Change
from optipfair_engine.bias.results.intervals import named

#: Of the two prompts' next-token distributions; the other quantities are those of ``Generations``.
NEXT_TOKEN: Final = "next_token"  # noqa: S105  # a word of a text


@dataclass(frozen=True)
class ContinuationChanges:
    """Changes by quantity: "next_token" (with patching), and those of the continuations (with generation).

    Attributes:
        margin: the relative change that doesn't count.
        distances: what is 0 where both prompts are continued alike: its change is relative.
        sizes: signed differences (second − first prompt): ``delta`` is that of the mean's absolute value, in
            the quantity's own unit, and there is no relative change.
        size_margins: the change of each of ``sizes`` that doesn't count.
        warnings: what to mind.
    """

    margin: float
    distances: Mapping[str, Change]
    sizes: Mapping[str, Change]
    size_margins: Mapping[str, float]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "margin": self.margin,
            "size_margins": dict(self.size_margins),
            **{name: change.as_dict() for name, change in {**self.distances, **self.sizes}.items()},
            "warnings": list(self.warnings),
        }

    def flat(self) -> dict[str, object]:
        """Flat metrics: ``…_change`` with its interval, ``…_outcome``, and the baseline's value."""
        flat: dict[str, object] = {}
        for name, change in {**self.distances, **self.sizes}.items():
            metric, value = _METRICS[name]
            amount = change.relative_change if name in self.distances else change.delta
            flat |= named(f"{metric}_change", amount)
            flat[f"{metric}_outcome"] = change.outcome
            flat[f"{value}_baseline"] = change.before
        return flat


#: Each quantity's metric of its change, without its ending, and of its value.
_METRICS: Final = {
    NEXT_TOKEN: ("next_token", "next_token_distance"),
    "divergence": ("generation_divergence", "generation_divergence"),
    "length_difference": ("generation_length", "generation_length_difference"),
    "sentiment_difference": ("generation_sentiment", "generation_sentiment_difference"),
}
