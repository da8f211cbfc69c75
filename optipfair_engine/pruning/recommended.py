"""The preset ``recommended``: the best measured way for each pruning type, with or without calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan

#: What a result says when nothing was calibrated.
STATIC_WARNING = (
    "no calibration was given: selection by weights alone damages models (SmolLM2-135M with 30 % of its "
    "neurons removed by static MAW has 29 times the dense perplexity, calibrated and refitted 1.23 times); "
    "give calibration text"
)


def resolve_preset(options: PruneOptions, *, calibrated: bool) -> PruneOptions:
    """Options with the preset written out; what was chosen away from the defaults stays as it is.

    Without calibration ``recommended`` changes nothing: the result then carries ``STATIC_WARNING``.
    """
    if options.preset != "recommended" or not calibrated:
        return options
    changes: dict[str, Any] = {"compensation": "least_squares"}
    if options.prunes_neurons:
        if options.neuron_selection_method == "MAW":
            changes["neuron_selection_method"] = "OBS"
        if options.layer_indices is None and options.allocation is None:
            changes["allocation"] = "allocated"
    elif options.pruning_type == "ATTENTION":
        changes["attention_unit"] = "query_head"
    elif options.layer_selection_method == "last" and options.layer_indices is None:
        changes["layer_selection_method"] = "importance"
    return replace(options, **changes)


def calibration_metrics(plan: PruningPlan, options: PruneOptions, *, calibrated: bool) -> dict[str, Any]:
    """What a result says of its calibration: source, tokens, tokens per feature, and warnings (if any)."""
    facts = plan.provenance.calibration
    found: dict[str, Any] = {}
    warnings: list[str] = []
    if facts is not None:
        names = ("source", "tokens", "tokens_per_feature")
        found = {f"calibration_{name}": getattr(facts, name) for name in names}
        warnings += facts.warnings
    warnings += plan.provenance.warnings or ()
    if options.preset == "recommended" and not calibrated and facts is None:
        warnings.append(STATIC_WARNING)
    if warnings:
        found["warnings"] = warnings
    return found
