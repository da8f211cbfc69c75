"""What suites found, as parts of the report's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from optipfair_engine.bias.html import outcome, table, yes_or_no
from optipfair_engine.bias.results.answers import MEASURES, AnswerChanges, AnswerScores
from optipfair_engine.bias.results.changes import PreferenceComparison
from optipfair_engine.bias.results.gaps import GapScores
from optipfair_engine.bias.results.hurtful import SCORE, HurtfulScores
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.scores import CrowsPairsScores, StereoEntry, StereoSetScores
from optipfair_engine.bias.results.suites import NamedScores, PairSuiteResult, SuiteResult
from optipfair_engine.bias.wording import between, p_value, three_digits
from optipfair_engine.options.suites import entry_of


def of_suite(suite: SuiteResult) -> Iterable[str]:
    """The scores of one of several suites, and what changed from the baseline."""
    yield from behaviour(suite.scores, suite.baseline)
    if isinstance(suite.comparison, AnswerChanges):
        yield _answer_changes(suite.comparison, entry_of(suite.name).title)
    elif suite.comparison is not None:
        yield preference_changes(suite.comparison, entry_of(suite.name).title)


def of_pairs(suite: PairSuiteResult) -> Iterable[str]:
    """The differences of a suite of prompt pairs by category, and what changed from the baseline."""
    entry = entry_of(suite.name)
    yield (
        f"<h2>{escape(entry.title)}</h2><p>{suite.pairs:,} pairs from {suite.templates:,} templates; each "
        "category has all templates.</p>"
    )
    changes = {"overall": suite.change, **suite.category_changes}
    yield table(
        "Mean difference from the first difference on, beside the suite's control pairs, with 95 % intervals "
        "(bootstrap over templates); relative change from the baseline, percent",
        ("category", "mean difference", "effect", "above noise", "relative change, %", "outcome"),
        [
            (
                escape(name),
                between(found.mean),
                between(found.noise.effect if found.noise is not None else None),
                yes_or_no(found.noise.above if found.noise is not None else None),
                between(change.relative_change, scale=100) if change is not None else "–",
                outcome(change.outcome) if change is not None else "–",
            )
            for name, found in {"overall": suite.overall, **suite.categories}.items()
            for change in (changes.get(name),)
        ],
    )


def behaviour(scores: NamedScores, baseline: NamedScores | None) -> Iterable[str]:
    """A heading, how it was scored, and the scores, with a baseline's beside them."""
    if isinstance(scores, GapScores):
        yield from _gaps(scores, baseline)
        return
    if isinstance(scores, AnswerScores):
        yield from _answers(scores, baseline)
        return
    if isinstance(scores, HurtfulScores):
        yield from _hurtful(scores, baseline)
        return
    detectable = (
        f"With {scores.items:,} items, a preference {three_digits(scores.minimum_detectable)} points from 50 "
        "would be found with 80 % power."
    )
    if isinstance(scores, CrowsPairsScores):
        yield from _crows_pairs(scores, baseline, detectable)
    else:
        yield f"<h2>StereoSet</h2><p>Scored by {escape(scores.scoring)}. {detectable}</p>"
        yield _stereoset(scores, baseline)


def _crows_pairs(scores: CrowsPairsScores, baseline: NamedScores | None, detectable: str) -> Iterable[str]:
    yield (
        f"<h2>CrowS-Pairs</h2><p>Scored by {escape(scores.scoring)}; perplexity "
        f"{_beside(scores, baseline)}. {detectable}</p>"
    )
    yield table(
        "How often the more stereotyping sentence is the likelier one, percent (50: as often as not), "
        "with Wilson's 95 % intervals",
        ("category", "items", "score"),
        [
            (escape(name), f"{share.items:,}", between(share.interval))
            for name, share in {"overall": scores.score, **scores.categories}.items()
        ],
    )


def _stereoset(scores: StereoSetScores, baseline: NamedScores | None) -> str:
    other = {"baseline, overall": baseline.overall} if isinstance(baseline, StereoSetScores) else {}
    rows = {"overall": scores.overall, **other, **scores.kinds, **scores.categories}
    return table(
        "Percent; ss: stereotype over anti-stereotype (50: as often as not), lms: meaningful over unrelated, "
        "both averaged over targets, with 95 % intervals of a bootstrap over them; over items: Wilson's",
        ("part", "items", "ss", "lms", "icat", "ss over items", "lms over items"),
        [
            (escape(name), f"{entry.items:,}", *map(between, _intervals(entry)))
            for name, entry in rows.items()
        ],
    )


def _intervals(entry: StereoEntry) -> Sequence[Interval]:
    return entry.ss, entry.lms, entry.icat, entry.ss_micro, entry.lms_micro


def _gaps(scores: GapScores, baseline: NamedScores | None) -> Iterable[str]:
    entry = entry_of(scores.suite)
    other = {"baseline, overall": baseline.overall} if isinstance(baseline, GapScores) else {}
    said = (
        f"Scored by {escape(scores.scoring)}; perplexity {_beside(scores, baseline)}. With "
        f"{scores.overall.templates:,} templates, a gap of {three_digits(scores.minimum_detectable)} points "
        "would be found with 80 % power."
    )
    if scores.correlation is not None:
        said += f" Correlation with the share of women in an occupation: {between(scores.correlation)}."
    yield f"<h2>{escape(entry.title)}</h2><p>{said}</p>"
    yield table(
        "Gap: how many percent of the items have the stereotyped pronoun likelier, minus how many have the "
        "other one (0: neutral); log-odds in nats; with 95 % intervals (bootstrap over templates)",
        ("part", "items", "gap", "log-odds"),
        [
            (escape(name), f"{gap.items:,}", between(gap.gap), between(gap.log_odds))
            for name, gap in {"overall": scores.overall, **other, **scores.categories}.items()
        ],
    )


def _answers(scores: AnswerScores, baseline: NamedScores | None) -> Iterable[str]:
    other = {"baseline, overall": baseline.overall} if isinstance(baseline, AnswerScores) else {}
    yield (
        f"<h2>{escape(entry_of(scores.suite).title)}</h2><p>Answered by {escape(scores.scoring)}; "
        f"perplexity of the answers {_beside(scores, baseline)}.</p>"
    )
    yield table(
        "Percent; s_dis and s_amb from −100 (against the stereotype) to 100 (with it), where the context "
        "tells the answer and where it doesn't; with 95 % intervals (bootstrap over questions)",
        ("category", "items", *MEASURES),
        [
            (escape(name), f"{found.items:,}", *(between(found.measures[measure]) for measure in MEASURES))
            for name, found in {"overall": scores.overall, **other, **scores.categories}.items()
        ],
    )


def _hurtful(scores: HurtfulScores, baseline: NamedScores | None) -> Iterable[str]:
    other = {"baseline, overall": baseline.overall} if isinstance(baseline, HurtfulScores) else {}
    yield (
        f"<h2>{escape(entry_of(scores.suite).title)}</h2><p>Completed by {escape(scores.scoring)}; "
        f"perplexity of the beginnings {_beside(scores, baseline)}.</p>"
    )
    yield table(
        "Hurtful words among the completions, percent, with 95 % intervals (bootstrap over templates)",
        ("about", "sentences", "hurtful"),
        [
            (escape(name), f"{found.items:,}", between(found.measures[SCORE]))
            for name, found in {"overall": scores.overall, **other, **scores.categories}.items()
        ],
    )


def _answer_changes(changes: AnswerChanges, suite: str) -> str:
    entries, measures = {"overall": changes.overall, **changes.categories}, tuple(changes.overall)
    return (
        f"<h2>Compared with the baseline, {escape(suite)}</h2>\n<p>{escape(changes.judged)}: "
        f"{between(changes.distance)} points, {outcome(changes.outcome)} against a margin of "
        f"{changes.margin:g}.</p>"
        + table(
            "Change in points, paired, with 95 % intervals",
            ("category", *measures),
            [
                (escape(name), *(between(found[measure]) for measure in measures))
                for name, found in entries.items()
            ],
        )
    )


def _beside(scores: NamedScores, baseline: NamedScores | None) -> str:
    """What a model knows of its language, and what the baseline does."""
    beside = f" (baseline {three_digits(baseline.language[1])})" if baseline is not None else ""
    return f"{three_digits(scores.language[1])}{beside}"


def preference_changes(comparison: PreferenceComparison, suite: str | None = None) -> str:
    """What changed of which sentences are preferred."""
    entries = {"overall": comparison.overall, **comparison.categories}
    where = "" if suite is None else f", {escape(suite)}"
    return f"<h2>Compared with the baseline{where}</h2>\n" + table(
        "Share of stereotypes preferred (of StereoSet averaged over targets, as ss); p of McNemar's test, "
        "Holm's across categories; the outcome is judged by the change of the distance from one half, in "
        f"points, against a margin of {100 * comparison.margin:g}",
        ("category", "items", "before", "after", "gained / lost", "p", "p (Holm)", "change of |share − ½|",
         "outcome"),
        [
            (
                escape(name),
                f"{entry.items:,}",
                f"{entry.before:.1%}",
                f"{entry.after:.1%}",
                f"{entry.to_stereotype} / {entry.from_stereotype}",
                p_value(entry.p_value),
                p_value(entry.p_holm),
                between(entry.distance_from_half, scale=100),
                outcome(entry.outcome),
            )
            for name, entry in entries.items()
        ],
    )  # fmt: skip
