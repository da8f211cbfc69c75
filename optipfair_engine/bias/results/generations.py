"""How alike what a model says to two prompts of a pair is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from optipfair_engine.bias.results.intervals import Interval, named
from optipfair_engine.notebooks import table


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

    def _repr_html_(self) -> str:
        measured = {
            "divergence (nats a token)": self.divergence,
            "difference of length (tokens)": self.length_difference,
            "overlap of the two prompts' texts": self.overlap,
            "overlap within a prompt's texts": self.overlap_within,
            f"difference of sentiment ({self.lexicon})": self.sentiment_difference,
        }
        rows = [(name, found.value, found.limits()) for name, found in measured.items() if found is not None]
        return table(("second − first prompt", "value", "95 % interval"), rows)

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
