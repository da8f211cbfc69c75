"""From options (and calibration, where they need it) to a plan: one entry for every pruning type."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options import rules
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.presets import resolve_preset
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.attention.by_norm import attention_plan
from optipfair_engine.pruning.attention.calibrated import calibrated_attention_plan
from optipfair_engine.pruning.depth.calibrated import calibrated_depth_plan
from optipfair_engine.pruning.depth.choice import depth_plan, select_layers
from optipfair_engine.pruning.experts.calibrated import expert_plan
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer
from optipfair_engine.pruning.width.by_score import kind_of, target_layers, width_plan
from optipfair_engine.pruning.width.calibrated import Calibrated, calibrated_width_plan, uniform_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.architectures.view import WeightsView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.facts import CalibrationFacts
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
    options = _checked(options, calibrated=calibration is not None or statistics is not None)
    refitted, allocated = options.compensation != "none", options.unequal_widths
    if options.prunes_neurons and (refitted or allocated):
        made = calibrated_width_plan(
            view, options, calibration, statistics, gatherer=gatherer, rule=rule, report=report
        )
        return _reconstructed(view, options, made, calibration, gatherer, report)
    if options.pruning_type == "DEPTH" and (refitted or rules.selects_layers_by_text(options)):
        return calibrated_depth_plan(view, options, calibration, report=report)
    if options.pruning_type == "ATTENTION" and refitted:
        return calibrated_attention_plan(
            view, options, calibration, statistics, gatherer=gatherer, report=report
        )
    if options.pruning_type == "EXPERTS" and calibration is not None:
        return Calibrated(expert_plan(view, options, calibration, gatherer=gatherer, report=report))
    if calibration is None:
        return Calibrated(_plan_by_weights(view, options, report))
    _refuse_statistics(options, calibrated=True)
    facts = calibration.facts(view.mlp(0).intermediate_size)
    gather = partial(gatherer.norms, view, calibration, report=report)
    return Calibrated(_plan_by_neuron_scores(view, options, gather, facts, report=report))


def _reconstructed(
    view: ModelView,
    options: PruneOptions,
    made: Calibrated,
    calibration: CalibrationSet | None,
    gatherer: Gatherer,
    report: Reporter,
) -> Calibrated:
    """The plan with its layers fitted to the dense ones, if that is asked for."""
    if options.reconstruction is None or made.statistics is None:
        return made
    if calibration is None:
        raise InvalidOptionError("reconstruction needs calibration text, and there are only kept statistics")
    # it brings transformers, which static plans of checkpoints do without
    from optipfair_engine.pruning.width.reconstruction import reconstruct

    plan = reconstruct(
        view,
        made.plan,
        made.statistics,
        calibration,
        max_seconds=options.reconstruction.max_seconds,
        seed=options.seed,
        gatherer=gatherer,
        report=report,
    )
    return replace(made, plan=plan)


def make_static_plan(
    view: WeightsView, options: PruneOptions, *, report: Reporter = null_reporter
) -> PruningPlan:
    """Choose what stays by the weights alone, of a model in memory or of a checkpoint on disk.

    Raises:
        InvalidOptionError: options that contradict each other or need calibration.
        TypeError, UnsupportedModelError, NonFiniteWeightsError: see ``make_plan``.
    """
    return _plan_by_weights(view, _checked(options, calibrated=False), report)


def _plan_by_weights(view: WeightsView, options: PruneOptions, report: Reporter) -> PruningPlan:
    _refuse_statistics(options, calibrated=False)
    if options.prunes_neurons:
        return _plan_by_neuron_scores(view, options, report=report)
    if options.pruning_type == "DEPTH":
        return _plan_depth(view, options)
    return attention_plan(view, options, report=report)


def _checked(options: PruneOptions, *, calibrated: bool) -> PruneOptions:
    """The options with their preset resolved; refused if they don't go with what there is."""
    options = resolve_preset(options, calibrated=calibrated)
    if options.fairness is not None:
        raise InvalidOptionError(
            "fairness needs the model and its tokenizer: use pruning.fairness.fair_plan_of, or "
            "prune_checkpoint in memory"
        )
    with engines_errors():
        rules.check_needs(options, calibrated=calibrated, healed=False)
        rules.check_reconstruction_of_refit(options, calibrated=calibrated)
        if calibrated:
            rules.check_calibration_is_used(options)
    return options


def _refuse_statistics(options: PruneOptions, *, calibrated: bool) -> None:
    with engines_errors():
        rules.check_statistics(options, calibrated=calibrated)


def uses_calibration(options: PruneOptions) -> bool:
    """Whether calibration, if there is any, has a say in what stays (rather than in healing alone)."""
    options = resolve_preset(options, calibrated=True)
    by_score = rules.scores_neurons_by_text(options) or options.pruning_type == "EXPERTS"
    solved = options.compensation != "none" or options.unequal_widths
    return by_score or solved or rules.selects_layers_by_text(options) or options.fairness is not None


def _plan_by_neuron_scores(
    view: WeightsView,
    options: PruneOptions,
    gather_norms: Callable[[Sequence[int]], Mapping[int, Tensor]] | None = None,
    calibration_facts: CalibrationFacts | None = None,
    *,
    report: Reporter,
) -> PruningPlan:
    layers = target_layers(view, options.layer_indices)
    counts = uniform_counts(view, options, layers, kind_of(options))
    return width_plan(
        view,
        options,
        counts,
        gather_norms=gather_norms,
        calibration_facts=calibration_facts,
        report=report,
    )


def _plan_depth(view: WeightsView, options: PruneOptions) -> PruningPlan:
    asked = rules.asked_layers(options)
    removed = select_layers(view.num_layers, asked, options.layer_selection_method)
    return depth_plan(view, removed, Provenance.of(options))
