"""The preset ``recommended``: the best measured way for each pruning type, written out as options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions


def resolve_preset(options: PruneOptions, *, calibrated: bool) -> PruneOptions:
    """Options with the preset written out; what was chosen away from the defaults stays as it is.

    Widths are equal, so that plain transformers loads the result, unless ``allocation`` says otherwise.
    Without calibration ``recommended`` changes nothing: the result then carries
    ``pruning.cautions.STATIC_WARNING``.
    """
    if options.preset != "recommended" or not calibrated:
        return options
    changes: dict[str, Any] = {"compensation": "least_squares"}
    if options.prunes_neurons:
        # fairness is itself the score of neurons
        if options.neuron_selection_method == "MAW" and options.fairness is None:
            changes["neuron_selection_method"] = "OBS"
    elif options.pruning_type == "ATTENTION":
        changes["attention_unit"] = "query_head"
    elif options.layer_selection_method == "last" and options.layer_indices is None:
        changes["layer_selection_method"] = "importance"
    return options.changed(**changes)
