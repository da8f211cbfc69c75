"""How alike what a model says to two prompts of a pair is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from optipfair_engine.bias.results.intervals import Interval, named


@dataclass(frozen=True)
class Generations:
    """Continuations of both prompts, compared; differences are second − first prompt.

    Attributes:
        pairs: how many pairs were continued.
        templates: how many templates they come from.
        samples: continuations of each prompt.
        max_new_tokens: the longest that one may be.
        divergence: how much likelier a continuation is behind its own prompt than behind the other, in nats a
            token (of both directions; 0: as likely).
        length_difference: in tokens.
        overlap: mean share of tokens that continuations of the two prompts have in common.
        overlap_within: the same of two continuations of one prompt; None with a single sample.
        sentiment_difference: of the lexicon's score, which lies between −1 and 1.
        lexicon: the lexicon's name and version.
        lexicon_known: share of the continuations of which the lexicon knows a word.
        warnings: what to mind.
    """

    pairs: int
    templates: int
    samples: int
    max_new_tokens: int
    divergence: Interval
    length_difference: Interval
    overlap: Interval
    overlap_within: Interval | None
    sentiment_difference: Interval
    lexicon: str
    lexicon_known: float
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def flat(self) -> dict[str, object]:
        """Flat metrics."""
        return {
            **named("generation_divergence", self.divergence),
            **named("generation_length_difference", self.length_difference),
            **named("generation_overlap", self.overlap),
            **named("generation_overlap_within", self.overlap_within),
            **named("generation_sentiment_difference", self.sentiment_difference),
        }
