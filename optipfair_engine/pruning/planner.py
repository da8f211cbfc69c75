"""From options (and calibration, where they need it) to a plan: one entry for every pruning type."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options import rules
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.presets import resolve_preset
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.attention.by_norm import attention_plan
from optipfair_engine.pruning.attention.calibrated import calibrated_attention_plan
from optipfair_engine.pruning.depth.calibrated import calibrated_depth_plan
from optipfair_engine.pruning.depth.choice import depth_plan, select_layers
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer
from optipfair_engine.pruning.targets import size_facts
from optipfair_engine.pruning.width.by_score import WidthSize, target_layers, width_plan
from optipfair_engine.pruning.width.calibrated import Calibrated, calibrated_width_plan, uniform_counts

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.statistics import GramStatistics
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan


def make_plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None = None,
    *,
    report: Reporter = null_reporter,
) -> PruningPlan:
    """Choose what stays of a located model.

    Raises:
        InvalidOptionError: options that contradict each other, or need (or can't use) calibration.
        TypeError: ``layer_indices`` that aren't integers.
        UnsupportedModelError: the family lacks what is to be pruned.
        NonFiniteWeightsError: NaN or infinite weights.
        CalibrationError: calibration that gave no usable statistic.
    """
    return make_calibrated_plan(view, options, calibration, report=report).plan


def make_calibrated_plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None = None,
    statistics: GramStatistics | None = None,
    *,
    gatherer: Gatherer = IN_MEMORY,
    rule: str | None = None,
    report: Reporter = null_reporter,
) -> Calibrated:
    """:func:`make_plan` with the statistics that the plan came from, or from statistics that were kept.

    ``gatherer``: where statistics come from, if none are given. ``rule``: how ``allocated`` widths are
    divided, if that was compared before.
    """
    calibrated = calibration is not None or statistics is not None
    options = resolve_preset(options, calibrated=calibrated)
    if options.fairness is not None:
        raise InvalidOptionError(
            "fairness needs the model and its tokenizer: use pruning.fairness.fair_plan_of, or "
            "prune_checkpoint in memory"
        )
    with engines_errors():
        rules.check_needs(options, calibrated=calibrated, healed=False)
        if calibrated:
            rules.check_calibration_is_used(options)
    refitted, allocated = options.compensation != "none", options.allocation == "allocated"
    if options.prunes_neurons and (refitted or allocated):
        return calibrated_width_plan(
            view, options, calibration, statistics, gatherer=gatherer, rule=rule, report=report
        )
    if options.pruning_type == "DEPTH" and (refitted or rules.selects_layers_by_text(options)):
        return calibrated_depth_plan(view, options, calibration, report=report)
    if options.pruning_type == "ATTENTION" and refitted:
        return calibrated_attention_plan(
            view, options, calibration, statistics, gatherer=gatherer, report=report
        )
    with engines_errors():
        rules.check_statistics(options, calibrated=calibrated)
    return Calibrated(_plan_by_score(view, options, calibration, gatherer, report))


def uses_calibration(options: PruneOptions) -> bool:
    """Whether calibration, if there is any, has a say in what stays (rather than in healing alone)."""
    options = resolve_preset(options, calibrated=True)
    by_score = rules.scores_neurons_by_text(options)
    solved = options.compensation != "none" or options.allocation == "allocated"
    return by_score or solved or rules.selects_layers_by_text(options) or options.fairness is not None


def _plan_by_score(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    gatherer: Gatherer,
    report: Reporter,
) -> PruningPlan:
    if options.prunes_neurons:
        return _plan_by_neuron_scores(view, options, calibration, gatherer, report)
    if options.pruning_type == "DEPTH":
        return _plan_depth(view, options)
    return attention_plan(view, options, report=report)


def _plan_by_neuron_scores(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    gatherer: Gatherer,
    report: Reporter,
) -> PruningPlan:
    counts = _target_counts(view, options)
    by_percentage = options.expansion_rate is None and counts is None
    features = view.mlp(0).intermediate_size if calibration is not None else 1
    plan = width_plan(
        view,
        pruning_type="MLP" if options.pruning_type == "MLP" else "MLP_GLU",
        method=options.neuron_selection_method,
        size=WidthSize(
            options.percentage if by_percentage else None, options.expansion_rate, options.expansion_divisor
        ),
        counts=counts,
        layer_indices=options.layer_indices,
        gather_norms=(
            None if calibration is None else lambda layers: gatherer.norms(view, calibration, layers, report)
        ),
        calibration_facts=None if calibration is None else calibration.facts(features),
        tie_break=options.tie_break,
        report=report,
    )
    return replace(plan, method={**plan.method, **size_facts(options)})


def _target_counts(view: ModelView, options: PruneOptions) -> dict[int, int] | None:
    """Neurons per layer for a target size; ``None`` where a percentage or a rate says it."""
    if options.target_parameters is None and options.target_bytes is None:
        return None
    layers = target_layers(view, options.layer_indices)
    return uniform_counts(view, options, layers, "MLP" if options.pruning_type == "MLP" else "MLP_GLU")


def _plan_depth(view: ModelView, options: PruneOptions) -> PruningPlan:
    removed = select_layers(
        view.num_layers,
        num_layers_to_remove=options.num_layers_to_remove,
        layer_indices=options.layer_indices,
        depth_pruning_percentage=options.depth_pruning_percentage,
        layer_selection_method=options.layer_selection_method,
    )
    method = options.layer_selection_method if options.layer_indices is None else "custom"
    return depth_plan(view, removed, {"layer_selection_method": method})
