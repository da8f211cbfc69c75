"""Plans by the weights alone, of a model in memory or of a checkpoint's mapped files: one code for both.

Nothing here imports torch: MAW of a checkpoint does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options import rules
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.presets import resolve_preset
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.depth.choice import depth_plan, select_layers
from optipfair_engine.pruning.width.by_score import kind_of, target_layers, uniform_counts, width_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from optipfair_engine.architectures.view import WeightsView
    from optipfair_engine.calibration.facts import CalibrationFacts
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan


def static_plan(view: WeightsView, options: PruneOptions, *, report: Reporter = null_reporter) -> PruningPlan:
    """Choose what stays by the weights alone, one layer at a time, of a model in memory or on disk.

    Raises:
        InvalidOptionError: options that contradict each other or need calibration.
        TypeError: ``layer_indices`` that aren't integers.
        UnsupportedModelError: the family lacks what is to be pruned.
        NonFiniteWeightsError: NaN or infinite weights among those that the scores read.
    """
    return plan_by_weights(view, checked(options, calibrated=False), report)


def plan_by_weights(view: WeightsView, options: PruneOptions, report: Reporter) -> PruningPlan:
    """:func:`static_plan` of options that were checked."""
    refuse_statistics(options, calibrated=False)
    if options.prunes_neurons:
        return plan_by_neuron_scores(view, options, report=report)
    if options.pruning_type == "DEPTH":
        return _plan_depth(view, options)
    from optipfair_engine.pruning.attention.by_norm import attention_plan

    return attention_plan(view, options, report=report)


def checked(options: PruneOptions, *, calibrated: bool) -> PruneOptions:
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


def refuse_statistics(options: PruneOptions, *, calibrated: bool) -> None:
    """Refuse to keep statistics that no calibration would give."""
    with engines_errors():
        rules.check_statistics(options, calibrated=calibrated)


def plan_by_neuron_scores(
    view: WeightsView,
    options: PruneOptions,
    gather_norms: Callable[[Sequence[int]], Mapping[int, Tensor]] | None = None,
    calibration_facts: CalibrationFacts | None = None,
    *,
    report: Reporter,
) -> PruningPlan:
    """Choose neurons by a score, static or with the activation norms that ``gather_norms`` gives."""
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
