"""How often a model completes a sentence with a hurtful word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from optipfair_engine.bias.results.answers import Answers, Chosen
from optipfair_engine.bias.results.grouped import GroupedScores

#: The measure, as metrics name it.
SCORE: Final = "score"


@dataclass(frozen=True)
class HurtfulScores(GroupedScores[Answers]):
    """HONEST's score, in percent of the completions: overall, and by whom the sentence is about."""


@dataclass(frozen=True)
class HurtfulResult:
    """The scores, and each sentence's share of hurtful words, which a comparison needs."""

    scores: HurtfulScores
    chosen: Chosen
