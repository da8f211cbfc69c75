"""The plan that takes whole experts away, by what calibration measures of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import PlanError
from optipfair_engine.options import rules
from optipfair_engine.plans.plan import PruningPlan, new_plan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.experts.choice import kept_count, kept_experts, removal_order
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.architectures.routing import Routing
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.experts import ExpertScores
    from optipfair_engine.calibration.facts import CalibrationFacts
    from optipfair_engine.options.prune import PruneOptions

#: With fewer, the mean of norms that spread as wide as they are large is off by more than a tenth.
TOKENS_PER_EXPERT = 100


def expert_plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet,
    *,
    gatherer: Gatherer = IN_MEMORY,
    report: Reporter = null_reporter,
) -> PruningPlan:
    """Plan to keep the experts of the highest score, the same number in every layer that has experts.

    Raises:
        UnsupportedModelError: the family's experts can't be removed, or it has none.
        InvalidOptionError: fewer experts than its router needs.
        CalibrationError: calibration that gave no usable score.
    """
    layers, routing = view.expert_layers(), view.routing
    count = kept_count(view, layers, routing, options)
    measured = gatherer.experts(view, calibration, layers, report)
    orders, unseen = {}, {}
    for done, layer in enumerate(layers, 1):
        found = measured[layer]
        scores = found.reap() if options.expert_selection_method == "REAP" else found.frequency()
        orders[layer] = removal_order(scores)
        unseen[layer] = _unseen(found)
        report("select", done, len(layers), f"layer {layer}: {count} of {routing.num_experts} experts stay")
    provenance = Provenance.of(
        options,
        data_driven=True,
        calibration=_facts(calibration, routing),
        warnings=tuple(_warnings(unseen, routing.num_experts)) or None,
    )
    kept = {layer: kept_experts(order, count, routing.groups) for layer, order in orders.items()}
    if count == routing.num_experts:
        kept = {}
    return new_plan(view, provenance, kept_experts=kept, removal_order=orders)


def other_count(view: ModelView, options: PruneOptions, plan: PruningPlan) -> PruningPlan:
    """The same plan at another size, along its own order of removal.

    Raises:
        PlanError: it holds no such order.
        InvalidOptionError: see ``expert_plan``.
    """
    if not plan.removal_order:
        raise PlanError("the plan holds no order of removal; make a new one with calibration")
    routing = view.routing
    count = kept_count(view, view.expert_layers(), routing, options)
    kept = {layer: kept_experts(order, count, routing.groups) for layer, order in plan.removal_order.items()}
    size: dict[str, Any] = dict.fromkeys(rules.WIDTH_FIELDS) | rules.asked_size(options)
    changed = replace(plan.provenance, **size)
    return replace(plan, provenance=changed, kept_experts=kept if count < routing.num_experts else {})


def _facts(calibration: CalibrationSet, routing: Routing) -> CalibrationFacts:
    """The calibration's facts, with the tokens that an expert sees on average in place of those a feature."""
    facts = calibration.facts(1)
    each = calibration.tokens * routing.per_token / routing.num_experts
    if each < TOKENS_PER_EXPERT:
        few = (
            f"calibration is small: an expert was sent {each:.0f} tokens on average, {TOKENS_PER_EXPERT} are "
            "advised (a larger num_samples, or a longer text)"
        )
        facts = replace(facts, warnings=(*facts.warnings, few))
    return replace(facts, tokens_per_feature=round(each, 2))


def _unseen(found: ExpertScores) -> int:
    return int((found.frequency() == 0).sum())


def _warnings(unseen: Mapping[int, int], experts: int) -> Iterator[str]:
    """Experts that no token was sent to have no score: they go first, whatever they are for."""
    layers = [layer for layer, count in unseen.items() if count]
    if layers:
        yield (
            f"no calibration token was sent to some experts (up to {max(unseen.values())} of {experts}, in "
            f"{len(layers)} of {len(unseen)} layers): they go first, unmeasured; give more calibration text, "
            "and of more kinds"
        )
