"""The error curves of a plan: what each layer would lose at other widths; and plans at another ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import PlanError
from optipfair_engine.options import rules
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.allocation import curve_widths
from optipfair_engine.pruning.experts.calibrated import other_count
from optipfair_engine.pruning.plan_options import allocation_of, plan_type, size_of
from optipfair_engine.pruning.planner import make_calibrated_plan
from optipfair_engine.pruning.sizes import kept_by_percentage
from optipfair_engine.pruning.width.by_score import kind_of, uniform_counts
from optipfair_engine.pruning.width.calibrated import calibrated_width_plan, eliminations_of

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.statistics import GramStatistics

PERCENTAGES = (10, 20, 30, 40, 50)


def error_table(
    plan: PruningPlan, percentages: Sequence[float] = PERCENTAGES
) -> dict[int, tuple[float, ...]]:
    """Layer → predicted relative squared error of its output with these percentages of its neurons removed.

    Raises:
        PlanError: the plan holds no curves (it wasn't made with a refit).
    """
    if not plan.curves:
        kind = plan_type(plan)
        raise PlanError(
            'the plan holds no error curves; they come with compensation="least_squares" or allocated widths'
            if kind in ("MLP_GLU", "MLP")
            else f"the plan holds no error curves: they are of neurons, and this is a {kind} plan"
        )
    return {
        layer: tuple(curve[len(curve) - 1 - kept_by_percentage(len(curve) - 1, p)] for p in percentages)
        for layer, curve in sorted(plan.curves.items())
    }


def replan(
    view: ModelView,
    options: PruneOptions,
    plan: PruningPlan,
    statistics: GramStatistics | None,
    *,
    report: Reporter = null_reporter,
) -> PruningPlan:
    """The same plan at another size, without any forward pass.

    Selection method and refit are the plan's; size, divisor and allocation are the options' (where they name
    no size: the plan's). With a refit the kept statistics are needed; without one the plan's own order of
    removal is enough.

    Raises:
        InvalidOptionError: a size that the plan's kind doesn't have, or that can't be reached.
        PlanError: a refit without statistics, or a plan that has no order of removal.
    """
    plan.validate(view)
    made = plan.provenance
    changed = options.changed(
        preset="guide",
        pruning_type=made.pruning_type or "MLP_GLU",
        layer_indices=made.layer_indices,
        allocation=options.allocation or allocation_of(plan),
        **{name: said or rules.default_of(options, name) for name, said in made.words().items()},
        **size_of(options, plan),
    )
    if changed.pruning_type == "EXPERTS":
        return other_count(view, changed, plan)
    if changed.compensation != "none":
        if statistics is None:
            raise PlanError(
                "another ratio with a refit needs the statistics of the calibration; "
                "prune once with keep_statistics (--keep-statistics)"
            )
        if changed.prunes_neurons:
            # a uniform plan says nothing of how unequal widths, if they are asked for now, are to be divided
            rule = None if allocation_of(plan) == "uniform" else made.allocation
            found = calibrated_width_plan(
                view,
                changed,
                None,
                statistics,
                eliminations=eliminations_of(plan),
                rule=rule,
                report=report,
            ).plan
            return replace(found, provenance=found.provenance.chosen_as(made))
        return make_calibrated_plan(view, changed, None, statistics, report=report).plan
    if made.calibration is None:
        return make_calibrated_plan(view, changed, report=report).plan
    return _by_order(view, changed, plan)


def _by_order(view: ModelView, options: PruneOptions, plan: PruningPlan) -> PruningPlan:
    """Other widths along the plan's order of removal."""
    if not plan.removal_order:
        raise PlanError("the plan holds no order of removal; make a new one with calibration")
    widths = uniform_counts(view, options, sorted(plan.removal_order), kind_of(options))
    sizes = {layer: len(order) for layer, order in plan.removal_order.items()}
    if options.allocation == "allocated":
        if not plan.curves:
            raise PlanError("allocated widths need the plan's error curves, and it holds none")
        divisor = options.expansion_divisor or 1
        widths = curve_widths(sizes, plan.curves, sum(widths.values()), divisor)
    kept = {
        layer: tuple(sorted(order[sizes[layer] - widths[layer] :]))
        for layer, order in plan.removal_order.items()
        if widths[layer] < sizes[layer]
    }
    # a plan by score alone, which stays uniform, says nothing of the division
    stated = options.allocation == "allocated" or plan.provenance.allocation is not None
    size: dict[str, Any] = dict.fromkeys(rules.WIDTH_FIELDS) | rules.asked_size(options)
    provenance = replace(plan.provenance, allocation=options.allocation if stated else None, **size)
    return replace(plan, provenance=provenance, kept_neurons=kept)
