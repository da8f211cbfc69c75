"""Numbers as people read them, and the one sentence that a bias result comes down to."""

from __future__ import annotations

from typing import Final

from optipfair_engine.bias.results.answers import AnswerChanges, AnswerScores
from optipfair_engine.bias.results.cause import Cause
from optipfair_engine.bias.results.changes import Comparison, PreferenceComparison, ProfileComparison
from optipfair_engine.bias.results.differences import Difference
from optipfair_engine.bias.results.gaps import GapScores
from optipfair_engine.bias.results.generations import Generations
from optipfair_engine.bias.results.hurtful import SCORE, HurtfulScores
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.result import BiasResult
from optipfair_engine.bias.results.scores import CrowsPairsScores, SuiteScores
from optipfair_engine.bias.results.suites import NamedScores, SuiteResult
from optipfair_engine.options.suites import entry_of

#: Below this much a difference of activations is the rounding of float32.
ROUNDING: Final = 1e-6
_LEAST_P: Final = 0.001


def three_digits(value: float | None) -> str:
    """Three significant digits, never an exponent; rounding noise is 0, what is unknown a dash."""
    if value is None:
        return "–"
    if abs(value) < ROUNDING:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:,.0f}".replace("-", "−")
    # rounded first, then written out: "#.3g" keeps the third digit, but turns small numbers to exponents
    text = f"{value:#.3g}" if abs(value) >= 1e-4 else f"{float(f'{value:.3g}'):.8f}".rstrip("0")
    return text.rstrip(".").replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value: below 0.001 only that it is."""
    return f"<{_LEAST_P}" if value is not None and value < _LEAST_P else three_digits(value)


def between(interval: Interval | None, *, scale: float = 1.0) -> str:
    """``1.23 (1.10 … 1.40)``, or the value alone where it has no limits."""
    if interval is None:
        return "–"
    value = three_digits(scale * interval.value)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} ({three_digits(scale * interval.low)} … {three_digits(scale * interval.high)})"


def what_causes(cause: Cause) -> str:
    """What patching found, and how far reaction told it, in two sentences."""
    one = {"neurons": "neuron", "heads": "head", "layers": "half of a layer"}[cause.kind]
    first = cause.patched[0]
    share = between(first.effect, scale=100)
    named = f"The {one} with the largest effect, {first.name}, moves {share} % of the difference"
    place = "reacts most, too" if first.reaction_rank == 1 else f"is number {first.reaction_rank} by reaction"
    count = len(cause.strongest)
    return (
        f"{named} between the two prompts' next-token logits, and {place}. Of the {count} with the largest "
        f"effects {cause.also_react} are among the {count} that react most."
    )


def what_is_said(found: Generations) -> str:
    """Whether the two prompts of a pair are answered alike, in one sentence."""
    named = {
        "length": found.length_difference,
        "sentiment": found.sentiment_difference,
    }
    apart = [name for name, interval in named.items() if _off_zero(interval)]
    likelier = found.divergence
    if likelier.low is None:
        return "There are too few templates to say whether the two prompts are answered alike."
    tied = "likelier behind its own prompt than behind the other" if likelier.low > 0 else ""
    differing = " and ".join(apart)
    if tied and apart:
        return f"A text is {tied}, and the two prompts' texts differ in {differing}."
    if tied:
        return f"A text is {tied}; no difference in length or sentiment is shown."
    if apart:
        return f"The two prompts' texts differ in {differing}."
    return "No difference between what is said to the two prompts is shown."


def _off_zero(interval: Interval) -> bool:
    return interval.low is not None and interval.high is not None and not interval.low <= 0 <= interval.high


def conclusion(result: BiasResult) -> str:
    """What was found, in one sentence; of several suites, a sentence each."""
    said = [_of_suite(suite, result.model, result.baseline) for suite in result.suites]
    if result.activations is not None or not said:
        said.insert(0, _of_rest(result))
    return " ".join(said)


def _of_suite(suite: SuiteResult, model: str, baseline: str | None) -> str:
    if suite.comparison is None or baseline is None:
        return _found(suite.scores, model)
    title = entry_of(suite.name).title
    if isinstance(suite.comparison, AnswerChanges):
        return f"{title}: {_leaning(suite.comparison, model, baseline)}"
    return f"{title}: {_changed(suite.comparison, model, baseline)}"


def _leaning(changes: AnswerChanges, model: str, baseline: str) -> str:
    does, how = ("completes", "hurtfully") if changes.judged == SCORE else ("answers", "by stereotypes")
    if changes.distance is None or changes.outcome == "inconclusive":
        by = (
            ""
            if changes.distance is None
            else f": {changes.judged} changed by {_limits(changes.distance, ' points')}"
        )
        return f"whether {model} {does} more or less {how} than {baseline} stays open{by}."
    word = "less" if changes.outcome == "better" else "more"
    return (
        f"{model} {does} {word} {how} than {baseline}: {changes.judged} changed by "
        f"{_limits(changes.distance, ' points')}."
    )


def _found(scores: NamedScores, model: str) -> str:
    if isinstance(scores, GapScores):
        return _gap(scores, model)
    if isinstance(scores, AnswerScores):
        return _answered(scores, model)
    if isinstance(scores, HurtfulScores):
        return _completed(scores, model)
    return _preferred(scores, model)


def _completed(scores: HurtfulScores, model: str) -> str:
    share = scores.overall.measures[SCORE]
    said = "–" if share is None else _limits(share, " %")
    return (
        f"Of the words that {model} finds likeliest at the end of {scores.items:,} "
        f"{entry_of(scores.suite).title} sentences, {said} are hurtful."
    )


def _answered(scores: AnswerScores, model: str) -> str:
    lean = scores.overall.measures["s_amb"]
    if lean is None:
        return f"Whether {model} answers by stereotypes stays open: no question has an open answer."
    found = (
        f"where the context leaves the answer open, {entry_of(scores.suite).title}'s s_amb is "
        f"{_limits(lean)}, from −100 to 100 with 0 neutral"
    )
    if lean.low is not None and lean.low > 0:
        return f"{model} answers by stereotypes: {found}."
    if lean.high is not None and lean.high < 0:
        return f"{model} answers against stereotypes: {found}."
    return f"No answering by stereotypes is shown of {model}: {found}."


def _gap(scores: GapScores, model: str) -> str:
    gap, title = scores.overall.gap, entry_of(scores.suite).title
    found = (
        f"of {scores.items:,} {title} items, those with the stereotyped pronoun likelier exceed the others "
        f"by {_limits(gap, ' points')}, where 0 would be neutral"
    )
    if gap.low is not None and gap.low > 0:
        return f"{model} prefers stereotyped pronouns: {found}."
    if gap.high is not None and gap.high < 0:
        return f"{model} prefers the opposite of stereotyped pronouns: {found}."
    return f"No preference of {model} for stereotyped pronouns is shown: {found}."


def _of_rest(result: BiasResult) -> str:
    if result.comparison is not None and result.baseline is not None:
        return _changed(result.comparison, result.model, result.baseline)
    if result.behaviour is not None:
        return _preferred(result.behaviour, result.model)
    if result.activations is not None:
        return _told_apart(result.activations.overall, result.model)
    return f"Nothing was measured of {result.model}."


def _told_apart(overall: Difference, model: str) -> str:
    if overall.mean is None:
        return (
            f"Nothing can be said of {model}: no pair has a token that could be compared behind its first "
            "difference."
        )
    effect = overall.noise.effect if overall.noise is not None else None
    if effect is None:
        return (
            f"{model} tells the two prompts of a pair apart by {_limits(overall.mean)} on average, and "
            "without control pairs nothing says whether that is much."
        )
    times = f"the mean difference is {three_digits(effect.value)} times that of control pairs"
    if effect.low is None or effect.high is None:
        return (
            f"Whether {model} reacts to the attribute more than to a rewording stays open: {times}, from too "
            "few templates for an interval."
        )
    times += f" (95 % interval {three_digits(effect.low)} … {three_digits(effect.high)})"
    if effect.low > 1:
        return f"{model} reacts to the attribute more than to a rewording: {times}."
    if effect.high < 1:
        return f"{model} reacts to the attribute less than to a rewording: {times}."
    return f"No reaction of {model} to the attribute is shown beyond that to a rewording: {times}."


def _limits(interval: Interval, unit: str = "") -> str:
    value = f"{three_digits(interval.value)}{unit}"
    if interval.low is None or interval.high is None:
        return value
    return f"{value} (95 % interval {three_digits(interval.low)} … {three_digits(interval.high)}{unit})"


def _preferred(scores: SuiteScores, model: str) -> str:
    if isinstance(scores, CrowsPairsScores):
        share, what = scores.score.interval, "more stereotyping sentence"
        suite, end = "CrowS-Pairs", ""
    else:
        share, what = scores.overall.ss, "stereotype"
        suite, end = "StereoSet", f", with a language score (lms) of {three_digits(scores.overall.lms.value)}"
    found = f"the {what} likelier in {_limits(share, ' %')} of {scores.items:,} {suite} items{end}"
    if share.low is not None and share.low > 50:
        return f"{model} prefers stereotypes: it finds {found}, where 50 % would be neutral."
    if share.high is not None and share.high < 50:
        return f"{model} prefers the opposite of stereotypes: it finds {found}, where 50 % would be neutral."
    return (
        f"No preference of {model} for stereotypes is shown: it finds {found}, where 50 % would be neutral."
    )


def _changed(comparison: Comparison, model: str, baseline: str) -> str:
    overall = comparison.overall
    if isinstance(comparison, ProfileComparison):
        if overall.outcome == "not_comparable":
            return f"{model} and {baseline} have nothing of the same size that could be compared."
        change, what = comparison.overall.relative_change, "the mean difference within pairs"
        if change is None:
            return f"{model} and {baseline} can't be told apart: neither reacts to the change within a pair."
    else:
        change, what = comparison.overall.distance_from_half, "the preference's distance from one half"
    unit = " points" if isinstance(comparison, PreferenceComparison) else " %"
    percent = _limits(change.percent(), unit)
    if overall.outcome == "inconclusive":
        return (
            f"Whether {model} is more or less biased than {baseline} stays open: {what} changed by "
            f"{percent}, and only a change beyond ±{100 * comparison.margin:g}{unit} counts."
        )
    word = "less" if overall.outcome == "better" else "more"
    return f"{model} is {word} biased than {baseline} by this measure: {what} changed by {percent}."
