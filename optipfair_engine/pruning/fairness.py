"""Pruning that also takes away what reacts to an attribute, and a report on whether it did.

A neuron is judged by two things: its utility (what its loss costs the layer's output, from the calibration's
Gram matrix) and its bias (how far it moves the output when the attribute changes, consistently over
templates). Half of the templates choose; the other half, never seen, tell whether the result differs from
random pruning of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from optipfair_engine.bias.analysis import NeuronRanking, analyze_pairs
from optipfair_engine.bias.cause.patching import neuron_effects
from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.prompts.suites import PairItem, pair_items, templates_of, texts_of
from optipfair_engine.bias.statistics.neurons import FEWEST_UNITS, NeuronStatistics
from optipfair_engine.bias.statistics.significance import Array, cluster_sums
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options import rules
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.presets import resolve_preset
from optipfair_engine.options.words import FairnessBy
from optipfair_engine.plans.plan import as_stored
from optipfair_engine.plans.provenance import FairnessFacts, Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.judging import judge
from optipfair_engine.pruning.width.calibrated import (
    SELECTION_RIDGE,
    SELECTION_SCALE,
    Calibrated,
    calibrated_width_plan,
    eliminate_neurons,
)
from optipfair_engine.solving.obs import Elimination
from optipfair_engine.solving.refit import cholesky_of, refit, ridge_diagonal, ridged

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.statistics import GramStatistics
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan

#: What fairness-aware selection orders neurons by, as a plan says it.
SCORE: Final[Mapping[FairnessBy, str]] = {
    "reaction": "rank(OBS cost) - weight * rank(bias)",
    "effect": "rank(OBS cost) - weight * rank(effect)",
}
#: Random prunings that the result is compared with.
RANDOM_DRAWS: Final = 5
BEFORE_HEALING: Final = (
    "bias_change and the fairness outcome are of the pruned model before healing, which may change them: "
    "compare the healed model with the original (a bias job with a baseline, or optipfair compare)."
)


@dataclass(frozen=True)
class FairPlan:
    """A plan with its statistics, and the report on what it did to held-out templates."""

    calibrated: Calibrated
    report: dict[str, Any]


def split_templates(
    pairs: Sequence[PromptPair | PairItem],
) -> tuple[list[PairItem], list[PairItem]]:
    """(pairs that choose, pairs held out): every other template, in order of appearance, is held out.

    Raises:
        InvalidOptionError: fewer than two templates, so nothing could be held out.
    """
    items = pair_items(pairs, "Fairness")
    names = templates_of(items)
    templates = list(dict.fromkeys(names))
    if len(templates) < 2:
        raise InvalidOptionError(
            "fairness needs prompt pairs of at least two templates: half of them are held out to see "
            "whether it worked"
        )
    held = set(templates[1::2])
    return (
        [pair for pair, name in zip(items, names, strict=True) if name not in held],
        [pair for pair, name in zip(items, names, strict=True) if name in held],
    )


def neuron_bias(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[PromptPair | PairItem],
    *,
    report: Reporter = null_reporter,
) -> dict[int, Tensor]:
    """Layer → bias b_j ≥ 0 of each neuron ``[I]``: its consistent, squared shift of the layer's output.

    b_j = (max(0, |m_j| − s_j) · ‖d_j‖₂)² with m_j the mean signed difference over templates, s_j its standard
    error (0 for too few templates to have one), d_j the neuron's column of the down projection.
    """
    ranking, items = NeuronRanking(model), pair_items(pairs, "Fairness")
    analyze_pairs(
        model, tokenizer, texts_of(items), templates=templates_of(items), ranking=ranking, report=report
    )
    statistics, norms = ranking.statistics()
    return {layer: torch.from_numpy(_bias(found, norms[layer])) for layer, found in statistics.items()}


def _bias(found: NeuronStatistics, norms: Array) -> Array:
    count = found.count
    error = (
        np.sqrt(found.squares / (count - 1) / count) if count >= FEWEST_UNITS else np.zeros_like(found.mean)
    )
    shift: Array = np.square(np.clip(np.abs(found.mean) - error, 0, None) * norms)
    return shift


def neuron_causes(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[PromptPair | PairItem],
    *,
    report: Reporter = null_reporter,
) -> dict[int, Tensor]:
    """Layer → b_j ≥ 0 of each neuron ``[I]``: the share of the next tokens' difference that it causes.

    b_j = max(0, m_j − s_j)² with m_j the neuron's mean effect over templates (``bias.cause.patching``) and
    s_j its standard error (0 for too few templates to have one). Neurons that work against the difference
    have 0: without them it would grow.
    """
    items = pair_items(pairs, "Fairness")
    effects, templates = neuron_effects(
        model, tokenizer, texts_of(items), templates=templates_of(items), report=report
    )
    found = {}
    for layer, values in effects.items():
        sums, sizes = cluster_sums(values, templates)
        means, count = sums / sizes[:, None], len(sizes)
        spread = means.std(axis=0, ddof=1) if count >= FEWEST_UNITS else np.zeros(values.shape[1])
        shares = np.clip(means.mean(axis=0) - spread / np.sqrt(count), 0, None)
        found[layer] = torch.from_numpy(np.square(shares))
    return found


_BIASES: Final = {"reaction": neuron_bias, "effect": neuron_causes}


def utility(weight: Tensor, gram: Tensor, ridge: float = SELECTION_RIDGE) -> Tensor:
    """What removing a neuron costs the refitted output: ‖W[:,j]‖² / [(G + λD)⁻¹]ⱼⱼ ``[I]`` (OBS).

    ``weight`` is the down projection ``[H, I]``, ``gram`` its input's G ``[I, I]``; λ and D are those of all
    selection.
    """
    factor = cholesky_of(lambda: ridged(gram, ridge, ridge_diagonal(gram, SELECTION_SCALE)))
    inverse = torch.cholesky_inverse(factor).diagonal()
    return weight.to(gram.device).double().square().sum(dim=0) / inverse.clamp_min(
        torch.finfo(torch.float64).tiny
    )


def fairness_scores(
    view: ModelView, statistics: GramStatistics, bias: Mapping[int, Tensor], *, weight: float = 1.0
) -> dict[int, Tensor]:
    """Layer → score of each neuron ``[I]``, high for those that should stay.

    rank(utility) − weight · rank(bias), both ranks in [0, 1] (equal values, such as no bias at all, share
    one): the two have no common unit, and both are spread over orders of magnitude.

    Raises:
        InvalidOptionError: a negative or infinite weight.
    """
    if not 0 <= weight < float("inf"):
        raise InvalidOptionError(f"The fairness weight must be at least 0 and finite, got {weight}")
    scores = {}
    for layer in statistics.fit:
        useful = _ranks(utility(view.mlp(layer).down_weight.detach(), statistics.total(layer)))
        scores[layer] = useful - weight * _ranks(bias[layer])
    return scores


def _ranks(values: Tensor) -> Tensor:
    """Ranks in [0, 1]; equal values get the lowest of their places."""
    unique, places = torch.unique(values.double().cpu(), return_inverse=True)
    counts = torch.bincount(places, minlength=len(unique))
    lowest = torch.cumsum(counts, 0) - counts
    return lowest[places].double() / max(1, len(values) - 1)


def fair_plan(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[PromptPair | PairItem],
    options: PruneOptions,
    calibration: CalibrationSet,
    *,
    weight: float = 1.0,
    by: FairnessBy = "reaction",
    draws: int = RANDOM_DRAWS,
    report: Reporter = null_reporter,
) -> FairPlan:
    """Plan width pruning by utility and bias, and compare it with random pruning of the same size.

    Args:
        model: a model whose family has neurons to remove.
        tokenizer: its tokenizer.
        pairs: prompt pairs of at least two templates.
        options: sizes, layers, allocation, refit; it can't name another neuron score.
        calibration: what utility and refit are measured on.
        weight: how much bias weighs against utility, by rank; 0 is utility alone.
        by: what counts as bias, and what the result is judged by: how neurons react (``neuron_bias``) and how
            far activations are apart, or what they cause (``neuron_causes``) and how far next tokens are.
        draws: how many random prunings to compare with; at least one.
        report: progress; stages "bias", or "estimate" and "cause", "calibrate", "select", "evaluate".

    Raises:
        InvalidOptionError: too few templates, a wrong weight, or options that are not about neurons, or that
            choose them in another way.
        UnsupportedModelError, CalibrationError: as any calibrated width plan.
    """
    from optipfair_engine.architectures import locate
    from optipfair_engine.calibration.statistics import gather_statistics
    from optipfair_engine.pruning.width.by_score import target_layers

    if not options.prunes_neurons:
        raise InvalidOptionError(f"fairness chooses neurons: pruning_type {options.pruning_type} has none")
    with engines_errors():
        rules.check_fairness(options)
    if draws < 1:
        raise InvalidOptionError(f"at least one random draw is needed, got {draws}")
    chosen, held = split_templates(pairs)
    view = locate(model)
    layers = target_layers(view, options.layer_indices)
    bias = _BIASES[by](model, tokenizer, chosen, report=report)
    statistics = gather_statistics(view, calibration, layers, "down_proj", report=report)
    plans = {}
    for name, factor in (("fair", weight), ("utility", 0.0)):
        scores = fairness_scores(view, statistics, bias, weight=factor)
        plans[name] = _plan(view, options, calibration, statistics, scores, report)
    facts = {"weight": weight, "by": by, "prompt_pairs": len(pairs), "held_out_pairs": len(held)}
    stated = FairnessFacts(weight, len(pairs), len(held), SCORE[by])
    # no score of the options' chose the plan's neurons
    provenance = plans["fair"].provenance.chosen_as(Provenance(fairness=stated))
    plan = replace(plans["fair"], provenance=provenance)
    random = _random_plans(view, plan, statistics, draws, options.seed)
    candidates = chain(plans.items(), random)
    judged = judge(model, tokenizer, held, candidates, len(plans) + draws, calibration, by, report)
    return FairPlan(Calibrated(plan, statistics), {**facts, **judged, "draws": draws})


def fair_plan_of(
    model: Any,
    tokenizer: Any,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    *,
    report: Reporter = null_reporter,
) -> FairPlan:
    """:func:`fair_plan` as ``options.fairness`` (``prompt_pairs``, ``weight``) asks for it.

    Raises:
        InvalidOptionError: no prompt pairs, an unknown field, or no calibration.
    """
    asked = options.fairness
    if asked is None:
        raise InvalidOptionError("fairness needs prompt_pairs")
    with engines_errors():
        rules.check_fairness(options)
        rules.check_needs(options, calibrated=calibration is not None, healed=False)
    if calibration is None:
        raise InvalidOptionError("fairness needs calibration data")
    chosen = resolve_preset(options, calibrated=True).changed(fairness=None)
    items = pair_items(asked.prompt_pairs, "Fairness")
    made = fair_plan(
        model, tokenizer, items, chosen, calibration, weight=asked.weight, by=asked.by, report=report
    )
    if options.healing_seconds is not None:
        made.report["warnings"].append(BEFORE_HEALING)
    return made


def flat_metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    """A prune job's metrics of a fairness report: no name here means two things."""
    flat: dict[str, Any] = {"fairness_outcome": report["outcome"], "fairness": dict(report)}
    named = {"bias_change": "against_dense", "bias_against_random": "against_random"}
    found = {name: report[field] for name, field in named.items()}
    if report["by"] == "effect":
        tokens = report["next_tokens"]
        found |= {name.replace("bias", "next_token"): tokens[field] for name, field in named.items()}
    for name, interval in found.items():
        flat |= {name: (interval or {}).get("value")}
        flat |= {f"{name}_{end}": (interval or {}).get(end) for end in ("low", "high")}
    return flat


def _plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet,
    statistics: GramStatistics,
    scores: Mapping[int, Tensor],
    report: Reporter,
) -> PruningPlan:
    """The calibrated plan whose order of removal is that of the scores."""
    orders: dict[int, Elimination] = {}
    for layer, score in scores.items():
        order = torch.sort(score, descending=True, stable=True).indices.flip(0)
        orders[layer] = eliminate_neurons(view.mlp(layer), statistics.total(layer), order)
    return calibrated_width_plan(
        view, options, calibration, statistics, eliminations=orders, report=report
    ).plan


def _random_plans(
    view: ModelView, plan: PruningPlan, statistics: GramStatistics, draws: int, seed: int
) -> Iterator[tuple[str, PruningPlan]]:
    """Plans of the same widths with neurons drawn at random, refitted (if ``plan`` is) in the same way.

    One at a time: each holds refitted weights of every layer.
    """
    generator = torch.Generator().manual_seed(seed)
    for draw in range(draws):
        kept: dict[int, tuple[int, ...]] = {}
        weights: dict[str, Tensor] = {}
        for layer, indices in plan.kept_neurons.items():
            mlp = view.mlp(layer)
            random = torch.randperm(mlp.intermediate_size, generator=generator)[: len(indices)].sort().values
            kept[layer] = tuple(random.tolist())
            if mlp.names["down"] in plan.weights:
                solved = refit(mlp.down_weight.detach(), *statistics.pair(layer), random).weight
                weights[mlp.names["down"]] = as_stored(
                    solved, mlp.down_weight.dtype, transposed=mlp.down_transposed
                )
        drawn = replace(plan, kept_neurons=kept, weights=weights, curves=None, removal_order=None)
        yield f"random {draw + 1}", drawn
