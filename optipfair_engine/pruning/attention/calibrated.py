"""Attention pruning by calibration, with its refit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from optipfair_engine.calibration.statistics import GramStatistics
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.plans.plan import HeadPlan, as_stored, new_plan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.attention.by_norm import locate_attentions
from optipfair_engine.pruning.attention.by_refit import head_columns, select_heads
from optipfair_engine.pruning.attention.units import kept_units, whole_units
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer
from optipfair_engine.pruning.width.by_score import target_layers
from optipfair_engine.pruning.width.calibrated import SELECTION_RIDGE, Calibrated
from optipfair_engine.solving.refit import refit

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.options.prune import PruneOptions

NEEDS_CALIBRATION = "compensation needs calibration data (a dataloader, or calibration texts)"


def calibrated_attention_plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    statistics: GramStatistics | None = None,
    *,
    gatherer: Gatherer = IN_MEMORY,
    report: Reporter = null_reporter,
) -> Calibrated:
    """Plan attention pruning by least-squares error, with the output projection refitted.

    Raises:
        InvalidOptionError: neither calibration nor statistics.
        UnsupportedModelError: heads that the family's code can't lose.
    """
    layers = target_layers(view, options.layer_indices)
    blocks = locate_attentions(view, layers)
    unit = options.attention_unit
    if options.preset != "guide" and all(b.num_heads == b.num_key_value_heads for b in blocks.values()):
        unit = "kv_group"  # without grouped queries a group is one head, and could lose none of its own
    counts = kept_units(view, blocks, options, unit)
    whole = {layer: whole_units(block, unit) for layer, block in blocks.items()}
    if statistics is None:
        if calibration is None:
            raise InvalidOptionError(NEEDS_CALIBRATION)
        statistics = gatherer.grams(view, calibration, layers, "o_proj", report)
    heads: dict[int, HeadPlan] = {}
    weights: dict[str, Tensor] = {}
    for done, (layer, block) in enumerate(blocks.items(), 1):
        report("select", done, len(blocks), f"layer {layer}: {counts[layer]} of {whole[layer]} {unit}s stay")
        if counts[layer] == whole[layer]:
            continue
        weight = block.o_weight.detach()
        heads[layer] = select_heads(
            weight,
            statistics.total(layer),
            num_heads=block.num_heads,
            num_key_value_heads=block.num_key_value_heads,
            unit=unit,
            kept=counts[layer],
            ridge=SELECTION_RIDGE,
        )
        columns = head_columns(heads[layer], block.head_dim)
        solved = refit(weight, *statistics.pair(layer), columns).weight
        stored = as_stored(solved, weight.dtype, transposed=block.o_transposed)
        weights[block.names["output"]] = gatherer.hold(stored)
    provenance = Provenance.of(
        options,
        head_selection="least_squares_error",
        compensation="least_squares",
        calibration=statistics.facts,
        layer_indices=None if options.layer_indices is None else tuple(layers),
    )
    return Calibrated(new_plan(view, provenance, kept_heads=heads, weights=weights), statistics)
