"""Which scorer asks which of the catalogue's suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from optipfair_engine.bias.behaviour.preferences import score_crows_pairs, score_stereoset
from optipfair_engine.bias.behaviour.pronouns import score_winobias, score_winogender
from optipfair_engine.bias.results.scores import BehaviourResult
from optipfair_engine.bias.results.suites import NamedScores
from optipfair_engine.progress import Reporter

_SCORERS: Final[Mapping[str, Callable[..., BehaviourResult[NamedScores]]]] = {
    "crows_pairs": score_crows_pairs,
    "stereoset": score_stereoset,
    "winobias": score_winobias,
    "winogender": score_winogender,
}


def score_suite(
    name: str, model: Any, tokenizer: Any, items: Any, report: Reporter
) -> BehaviourResult[NamedScores]:
    """Score the items of one suite; what is reported says which suite it is of.

    Raises:
        EngineError: as the suite's own scorer does.
    """

    def told(stage: str, done: int, total: int, message: str) -> None:
        report(stage, done, total, f"{name}: {message}")

    return _SCORERS[name](model, tokenizer, items, report=told)
