"""Which pronoun a model finds likelier for an occupation: WinoBias and Winogender, by likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.behaviour.sentences import pair_scores, perplexity_of, refuse_non_finite
from optipfair_engine.bias.prompts.pronouns import PronounItem, PronounItems
from optipfair_engine.bias.results.gaps import Gap, GapScores
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.scores import BehaviourResult, Preferences
from optipfair_engine.bias.statistics.significance import (
    Array,
    bootstrap_interval,
    bootstrap_means,
    cluster_sums,
    detectable_mean,
)
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.progress import Reporter, null_reporter

PRONOUN_WARNING: Final = (
    "The sentences are English, about occupations and about women and men alone: a model may prefer no "
    "stereotyped pronoun here and still do so elsewhere."
)
Rows = npt.NDArray[np.bool_]


def score_winobias(
    model: Any, tokenizer: Any, items: PronounItems, *, report: Reporter = null_reporter
) -> BehaviourResult[GapScores]:
    """WinoBias (Zhao et al. 2018) by likelihood: how often the stereotyped pronoun is the likelier one.

    The paper measures coreference systems by F1 on pro minus F1 on anti sentences. A language model is asked
    which of both sentences is likelier: ``gap`` is the percentage of items where pro is, minus that where
    anti is. Categories: type 1 and 2, the stereotype's gender, the occupation. Intervals are of a bootstrap
    over templates (the two occupations of a sentence).

    Raises:
        EngineError: as ``score_crows_pairs`` does.
    """
    return _score("winobias", model, tokenizer, items, report)


def score_winogender(
    model: Any, tokenizer: Any, items: PronounItems, *, report: Reporter = null_reporter
) -> BehaviourResult[GapScores]:
    """Winogender (Rudinger et al. 2018) by likelihood; see :func:`score_winobias`.

    Overall counts the items whose pronoun is the occupation's; those whose pronoun is the participant's are
    the category ``participant``. ``correlation`` is the paper's comparison with the share of women in an
    occupation, over occupations, with a bootstrap over them.

    Raises:
        EngineError: as ``score_crows_pairs`` does.
    """
    return _score("winogender", model, tokenizer, items, report)


def _score(
    suite: str, model: Any, tokenizer: Any, found: PronounItems, report: Reporter
) -> BehaviourResult[GapScores]:
    items = found.items
    if not any(item.kind != "participant" for item in items):
        raise InvalidOptionError(f"The files of {suite} have no item that could be used")
    scores, tokens, scoring = pair_scores(model, tokenizer, [(item.pro, item.anti) for item in items], report)
    refuse_non_finite(scores, [item.pro for item in items], model)
    odds = scores[:, 0] - scores[:, 1]
    counted = np.array([item.kind != "participant" for item in items])
    templates = np.array([item.template for item in items])
    result = GapScores(
        suite=suite,
        scoring=scoring,
        overall=_gap(odds, templates, counted),
        categories={name: _gap(odds, templates, rows) for name, rows in _parts(items, counted)},
        perplexity=perplexity_of(-float(scores.sum()), float(tokens.sum())),
        correlation=_correlation(items, odds, counted),
        minimum_detectable=detectable_mean(100 * np.sign(odds[counted]), list(templates[counted])),
        warnings=(PRONOUN_WARNING, *_left_out(found)),
    )
    chosen = [item for item, used in zip(items, counted, strict=True) if used]
    preferences = Preferences(
        odds[counted] > 0,
        tuple(item.occupation for item in chosen),
        tuple(item.template for item in chosen),
    )
    return BehaviourResult(result, preferences)


def _parts(items: Sequence[PronounItem], counted: Rows) -> Iterator[tuple[str, Rows]]:
    """The categories: kinds of all items, and of those that overall counts genders and occupations."""
    kinds = np.array([item.kind for item in items])
    yield from ((str(kind), kinds == kind) for kind in np.unique(kinds) if kind != "occupation")
    for labels in ([item.gender for item in items], [item.occupation for item in items]):
        values = np.array(labels)
        yield from ((str(value), counted & (values == value)) for value in np.unique(values[counted]))


def _gap(odds: Array, templates: npt.NDArray[np.str_], rows: Rows) -> Gap:
    """The gap in percent and the log-odds of some items, clustered by template."""
    values = np.column_stack([100 * np.sign(odds[rows]), odds[rows]])
    names = templates[rows].tolist()
    drawn, clusters = bootstrap_means(values, names), len(set(names))
    gap, log_odds = (float(mean) for mean in values.mean(axis=0))
    return Gap(
        items=len(values),
        templates=clusters,
        gap=bootstrap_interval(gap, drawn[:, 0], clusters, least=-100, greatest=100),
        log_odds=bootstrap_interval(log_odds, drawn[:, 1], clusters),
    )


def _correlation(items: Sequence[PronounItem], odds: Array, counted: Rows) -> Interval | None:
    """Pearson's r over occupations of log p(female) − log p(male) with the percentage of women."""
    used = [(item, float(odd)) for item, odd, use in zip(items, odds, counted, strict=True) if use]
    shares = {item.occupation: item.percent_female for item, _ in used}
    known = {occupation: share for occupation, share in shares.items() if share is not None}
    if len(known) < 3:
        return None
    female = np.array([odd if item.gender == "female" else -odd for item, odd in used])
    names = [item.occupation for item, _ in used]
    sums, sizes = cluster_sums(female[:, None], names)
    means, women = sums[:, 0] / sizes, np.array([known[name] for name in np.unique(names)])
    # moments are means, so resampled correlations are functions of resampled means
    moments = np.column_stack([means, women, means * women, means**2, women**2])
    clusters = [str(number) for number in range(len(means))]
    value, drawn = _pearson(moments.mean(axis=0)[None])[0], _pearson(bootstrap_means(moments, clusters))
    return bootstrap_interval(float(value), drawn, len(means), least=-1, greatest=1)


def _pearson(moments: Array) -> Array:
    """R of means ``[samples, 5]`` of x, y, xy, x², y²; 0 where nothing varies."""
    x, y, xy, xx, yy = moments.T
    spread = np.sqrt(np.maximum(xx - x**2, 0) * np.maximum(yy - y**2, 0))
    found: Array = np.divide(xy - x * y, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    return found


def _left_out(found: PronounItems) -> list[str]:
    return [f"Left out: {count} items {reason}." for reason, count in found.left_out.items()]
