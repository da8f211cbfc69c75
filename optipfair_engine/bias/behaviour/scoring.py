"""Which scorer asks which of the catalogue's suites, and what compares two models' results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from optipfair_engine.bias.behaviour.answers import compare_answers, score_bbq
from optipfair_engine.bias.behaviour.honest import compare_honest, score_honest
from optipfair_engine.bias.behaviour.preferences import score_crows_pairs, score_stereoset
from optipfair_engine.bias.behaviour.pronouns import score_winobias, score_winogender
from optipfair_engine.bias.results.answers import AnswerChanges, AnswerResult
from optipfair_engine.bias.results.changes import PreferenceComparison
from optipfair_engine.bias.results.hurtful import HurtfulResult
from optipfair_engine.bias.results.scores import BehaviourResult
from optipfair_engine.bias.results.suites import NamedScores, SuiteResult
from optipfair_engine.bias.statistics.comparison import compare_behaviour
from optipfair_engine.progress import Reporter

#: What a scorer gives.
Scored: TypeAlias = BehaviourResult[NamedScores] | AnswerResult | HurtfulResult

_SCORERS: Final[Mapping[str, Callable[..., Scored]]] = {
    "bbq": score_bbq,
    "crows_pairs": score_crows_pairs,
    "honest": score_honest,
    "stereoset": score_stereoset,
    "winobias": score_winobias,
    "winogender": score_winogender,
}


def score_suite(name: str, model: Any, tokenizer: Any, items: Any, report: Reporter) -> Scored:
    """Score the items of one suite; what is reported says which suite it is of.

    Raises:
        EngineError: as the suite's own scorer does.
    """

    def told(stage: str, done: int, total: int, message: str) -> None:
        report(stage, done, total, f"{name}: {message}")

    return _SCORERS[name](model, tokenizer, items, report=told)


def suite_result(
    name: str, found: Scored, before: Scored | None, *, seed: int, margin: float | None
) -> SuiteResult:
    """One suite's scores, and what changed from a baseline's; ``margin`` is a share, None the default."""
    if before is None:
        return SuiteResult(name, found.scores)
    points = {} if margin is None else {"margin": 100 * margin}
    given = {} if margin is None else {"margin": margin}
    changed: PreferenceComparison | AnswerChanges
    if isinstance(found, AnswerResult) and isinstance(before, AnswerResult):
        changed = compare_answers(before.chosen, found.chosen, seed=seed, **points)
    elif isinstance(found, HurtfulResult) and isinstance(before, HurtfulResult):
        changed = compare_honest(before.chosen, found.chosen, seed=seed, **points)
    elif isinstance(found, BehaviourResult) and isinstance(before, BehaviourResult):
        changed = compare_behaviour(before, found, seed=seed, **given)
    else:
        raise TypeError("Two results of one suite are of one kind")
    return SuiteResult(name, found.scores, before.scores, changed)
