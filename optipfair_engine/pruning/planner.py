"""From options (and calibration, where they need it) to a plan: one entry for every pruning type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.attention import attention_plan
from optipfair_engine.pruning.depth import depth_plan, select_layers
from optipfair_engine.pruning.width import WidthSize, check_method, width_plan

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.pruning.options import PruneOptions
    from optipfair_engine.pruning.plan import PruningPlan


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
    """
    if options.prunes_neurons:
        check_method(
            options.neuron_selection_method,
            calibrated=calibration is not None,
            compensated=options.compensation != "none",
        )
    _refuse_what_is_missing(options)
    if options.prunes_neurons:
        return _plan_width(view, options, calibration, report)
    if calibration is not None:
        raise InvalidOptionError(
            f"pruning_type {options.pruning_type} chooses by weights: calibration is not used"
        )
    if options.pruning_type == "DEPTH":
        return _plan_depth(view, options)
    return attention_plan(
        view,
        unit=options.attention_unit,
        pruning_percentage=options.percentage,
        layer_indices=options.layer_indices,
        report=report,
    )


def _plan_width(
    view: ModelView, options: PruneOptions, calibration: CalibrationSet | None, report: Reporter
) -> PruningPlan:
    percentage = options.percentage if options.expansion_rate is None else None
    features = view.mlp(0).intermediate_size if calibration is not None else 1
    return width_plan(
        view,
        pruning_type="MLP" if options.pruning_type == "MLP" else "MLP_GLU",
        method=options.neuron_selection_method,
        size=WidthSize(percentage, options.expansion_rate, options.expansion_divisor),
        layer_indices=options.layer_indices,
        batches=None if calibration is None else calibration.batches,
        calibration_facts=None if calibration is None else calibration.facts(features),
        report=report,
    )


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


def _refuse_what_is_missing(options: PruneOptions) -> None:
    """Options that the engine can't carry out are errors, never ignored."""
    asked = {
        "preset recommended": options.preset != "guide",
        "compensation": options.compensation != "none",
        "neuron_selection_method OBS": options.neuron_selection_method == "OBS",
        "target_parameters": options.target_parameters is not None,
        "target_bytes": options.target_bytes is not None,
        "allocation": options.allocation != "uniform",
        "layer_selection_method": options.layer_selection_method in ("importance", "greedy_perplexity"),
        "healing": options.healing_seconds is not None,
        "fairness": options.fairness is not None,
        "keep_statistics": options.keep_statistics,
    }
    missing = [name for name, given in asked.items() if given]
    if missing:
        raise InvalidOptionError(f"not supported yet: {', '.join(missing)}")
