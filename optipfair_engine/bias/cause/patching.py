"""Activation patching between the two prompts of a pair: what moves the next token, and how much of it.

A model that reads two prompts gives each next token other logits. Exchanging one unit's activations between
the two, and nothing else, moves part of that difference: the unit's effect (interchange intervention; Vig et
al. 2020, arXiv 2004.12265; Heimersheim & Nanda 2024, arXiv 2404.15255). What merely reacts moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.bias.activations.batching import (
    TOKEN_BUDGET,
    check_continues,
    check_prompts,
    inference,
    within_budget,
)
from optipfair_engine.bias.activations.stream import EncodedPair, encode_pairs
from optipfair_engine.bias.cause.estimate import Estimates, estimate_effects
from optipfair_engine.bias.cause.exchange import PairBatch, apart, total_variation
from optipfair_engine.bias.cause.places import Group, groups_of
from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.results.cause import Cause, Patched
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.statistics.significance import (
    FEW_CLUSTERS,
    Array,
    bootstrap_interval,
    bootstrap_means,
)
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.words import Patching
from optipfair_engine.progress import Reporter, null_reporter

#: Units that are patched because their estimated effect is largest, and because they react most.
BY_ESTIMATE: Final = 64
BY_REACTION: Final = 32


def patch_pairs(
    model: Any,
    tokenizer: Any,
    prompt_pairs: Sequence[PromptPair],
    kind: Patching = "neurons",
    *,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    token_budget: int = TOKEN_BUDGET,
    report: Reporter = null_reporter,
) -> Cause:
    """Exchange units between the prompts of each pair, and measure what share of their difference moves.

    The effect of a unit is ⟨z′ − z, d⟩ / ‖d‖², with d the difference of the two prompts' next-token logits
    and z′ the logits with the other prompt's activations at that unit, from the first difference on, averaged
    over both directions: 0 where it has no part in the difference, 1 where it carries all of it, negative
    where it works against it. All units get a first-order estimate from one gradient; those with the largest
    estimates, and those that react most, are patched: one batched run each.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt_pairs: two texts each; aligned as in ``analyze_pairs``.
        kind: "neurons" (of the MLPs), "heads", or "layers" (each layer's attention and MLP).
        templates: names of the clusters, one a pair.
        seed: of the bootstrap.
        token_budget: padded tokens of a batch.
        report: progress; stages "estimate" and "cause".

    Raises:
        InvalidOptionError: no pair whose prompts are continued differently.
        UnsupportedModelError: the model continues no text, or has no such units.
        NonFiniteResultError: its logits overflow.
    """
    found = _measure(model, tokenizer, prompt_pairs, kind, templates, token_budget, report)
    return _cause(kind, found, seed)


def neuron_effects(
    model: Any,
    tokenizer: Any,
    prompt_pairs: Sequence[PromptPair],
    *,
    templates: Sequence[str] | None = None,
    report: Reporter = null_reporter,
) -> tuple[dict[int, Array], list[str]]:
    """Layer → effects of its neurons ``[pairs, neurons]``, and each pair's template.

    Effects are patched where ``patch_pairs`` would patch, and else estimated. Pairs with nothing to move are
    left out.

    Raises:
        InvalidOptionError, UnsupportedModelError, NonFiniteResultError: as ``patch_pairs``.
    """
    found = _measure(model, tokenizer, prompt_pairs, "neurons", templates, TOKEN_BUDGET, report)
    effects = found.estimates.effects.copy()
    effects[:, found.chosen] = found.effects
    ends = np.cumsum([group.count for group in found.groups])[:-1]
    parts = np.split(effects, ends, axis=1)
    layers = {group.layer: part for group, part in zip(found.groups, parts, strict=True)}
    return layers, [pair.template for pair in found.pairs]


def continuation_distances(model: Any, tokenizer: Any, prompt_pairs: Sequence[PromptPair]) -> Array:
    """Total variation distance of the next-token distributions behind both prompts ``[pairs]``.

    Raises:
        InvalidOptionError, UnsupportedModelError, NonFiniteResultError: as ``patch_pairs``.
    """
    view = locate(model)
    check_continues(view)
    pairs = _encoded(view, tokenizer, prompt_pairs, [""] * len(prompt_pairs))
    found = []
    with inference(model):
        for run in within_budget([pair.length for pair in pairs], TOKEN_BUDGET, rows_each=2):
            logits = PairBatch(view, pairs[run.start : run.stop]).logits()
            found.append(total_variation(logits).double().cpu().numpy())
    distances: Array = np.concatenate(found)
    return distances


@dataclass(frozen=True)
class _Measured:
    """The pairs that had something to move, all units' estimates, and the effects of those ``chosen``."""

    groups: list[Group]
    pairs: list[EncodedPair]
    estimates: Estimates
    chosen: list[int]
    effects: Array
    left_out: list[int]
    all_templates: list[str]


def _measure(
    model: Any,
    tokenizer: Any,
    prompt_pairs: Sequence[PromptPair],
    kind: Patching,
    templates: Sequence[str] | None,
    token_budget: int,
    report: Reporter,
) -> _Measured:
    view = locate(model)
    check_continues(view)
    groups = groups_of(view, kind)
    pairs = _encoded(view, tokenizer, prompt_pairs, templates)
    found = estimate_effects(view, groups, pairs, report)
    told = found.told
    if not any(told):
        raise InvalidOptionError(
            f"patching: nothing of the {len(pairs)} pairs can be exchanged: the model continues both "
            "prompts alike, or they differ only where one of them has no words"
        )
    used = [pair for pair, good in zip(pairs, told, strict=True) if good]
    estimates = replace(found, effects=found.effects[told])
    chosen = _chosen(estimates)
    effects = _effects(view, groups, used, chosen, token_budget, report)
    left_out = [pair.index + 1 for pair, good in zip(pairs, told, strict=True) if not good]
    return _Measured(groups, used, estimates, chosen, effects, left_out, [pair.template for pair in pairs])


def _encoded(
    view: ModelView, tokenizer: Any, prompt_pairs: Sequence[PromptPair], templates: Sequence[str] | None
) -> list[EncodedPair]:
    pairs = encode_pairs(tokenizer, prompt_pairs, templates, causal=True)
    check_prompts(view, (prompt for pair in pairs for prompt in (pair.first, pair.second)))
    return pairs


def _chosen(estimates: Estimates) -> list[int]:
    """The units to patch, in their own order: the largest estimates, and the strongest reactions."""
    sizes = np.abs(estimates.effects.mean(axis=0))
    first = np.argsort(-sizes, kind="stable")[:BY_ESTIMATE]
    second = np.argsort(-estimates.reactions, kind="stable")[:BY_REACTION]
    return sorted({*first.tolist(), *second.tolist()})


def _effects(
    view: ModelView,
    groups: Sequence[Group],
    pairs: Sequence[EncodedPair],
    chosen: Sequence[int],
    token_budget: int,
    report: Reporter,
) -> Array:
    """Share of the difference that each exchange moves ``[pairs, chosen]``."""
    places = [_place(groups, unit) for unit in chosen]
    effects = np.zeros((len(pairs), len(chosen)))
    runs = list(within_budget([pair.length for pair in pairs], token_budget, rows_each=2))
    with inference(view.model):
        for done, run in enumerate(runs):
            batch = PairBatch(view, pairs[run.start : run.stop])
            clean = batch.logits()
            difference = apart(clean)
            squares = difference.square().sum(dim=1)
            for number, (group, index) in enumerate(places):
                moved = batch.swapped_logits(group.site, group.part(index)) - clean
                along = ((moved[0::2] - moved[1::2]) * difference).sum(dim=1) / (2 * squares)
                effects[run.start : run.stop, number] = along.double().cpu().numpy()
                step = done * len(places) + number + 1
                report("cause", step, len(runs) * len(places), f"{group.component} of layer {group.layer}")
    return effects


def _place(groups: Sequence[Group], unit: int) -> tuple[Group, int]:
    for group in groups:
        if unit < group.count:
            return group, unit
        unit -= group.count
    raise IndexError(unit)


def _cause(kind: Patching, found: _Measured, seed: int) -> Cause:
    templates = [pair.template for pair in found.pairs]
    clusters, means = len(set(templates)), found.effects.mean(axis=0)
    drawn = bootstrap_means(found.effects, templates, seed=seed)
    intervals = [
        bootstrap_interval(float(mean), drawn[:, number], clusters) for number, mean in enumerate(means)
    ]
    known = found.estimates.effects.mean(axis=0)
    known[found.chosen] = means
    order = np.argsort(-np.abs(means), kind="stable")
    patched = _patched(found, intervals)
    return Cause(
        kind,
        pairs=len(found.pairs),
        templates=clusters,
        units=len(known),
        distance=_mean(found.estimates.distances, found.all_templates, seed),
        agreement=_agreement(np.abs(known), found.estimates.reactions),
        patched=tuple(patched[number] for number in order),
        warnings=tuple(_warnings(found.left_out, clusters)),
    )


def _patched(found: _Measured, intervals: Sequence[Interval]) -> list[Patched]:
    """The chosen units, in their own order."""
    estimates, reactions = found.estimates.effects.mean(axis=0), found.estimates.reactions
    places = np.argsort(np.argsort(-reactions, kind="stable"), kind="stable") + 1
    units = []
    for unit, interval in zip(found.chosen, intervals, strict=True):
        group, index = _place(found.groups, unit)
        estimate, reaction = float(estimates[unit]), float(reactions[unit])
        units.append(
            Patched(group.component, group.layer, index, interval, estimate, reaction, int(places[unit]))
        )
    return units


def _mean(values: Array, templates: Sequence[str], seed: int) -> Interval:
    drawn = bootstrap_means(values[:, None], templates, seed=seed)[:, 0]
    return bootstrap_interval(float(values.mean()), drawn, len(set(templates)), least=0, greatest=1)


def _agreement(effects: Array, reactions: Array) -> float | None:
    """Spearman's rank correlation; None where one of the two is the same for all units."""
    from scipy import stats

    if len(effects) < 3 or np.ptp(effects) == 0 or np.ptp(reactions) == 0:
        return None
    return float(stats.spearmanr(effects, reactions).statistic)


def _warnings(left_out: Sequence[int], templates: int) -> list[str]:
    found = []
    if left_out:
        numbers = ", ".join(map(str, left_out[:10])) + (" …" if len(left_out) > 10 else "")
        verb = "pair is" if len(left_out) == 1 else "pairs are"
        found.append(
            f"{len(left_out)} {verb} left out of patching (number {numbers}): the model continues both "
            "prompts alike, or has no position to exchange."
        )
    if templates == 1:
        found.append("Patching has one template: nothing says how others would come out, so no intervals.")
    elif templates < FEW_CLUSTERS:
        found.append(f"Patching has only {templates} templates: its intervals are wide.")
    return found
