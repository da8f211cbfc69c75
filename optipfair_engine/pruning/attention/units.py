"""How many attention units (KV groups, or query heads of each group) stay in each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.pruning.sizes import kept_by_percentage, warn_if_nothing_changes
from optipfair_engine.pruning.targets import Target, target_of

if TYPE_CHECKING:
    from optipfair_engine.architectures.view import AttentionWeights, WeightsView
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import AttentionUnit


def whole_units(attention: AttentionWeights, unit: AttentionUnit) -> int:
    """How many KV groups, or how many query heads of each group, a layer has."""
    groups = attention.num_key_value_heads
    return groups if unit == "kv_group" else attention.num_heads // groups


def kept_units(
    view: WeightsView, blocks: Mapping[int, AttentionWeights], options: PruneOptions, unit: AttentionUnit
) -> dict[int, int]:
    """How many units each layer keeps; warns when a percentage is too small for any to go.

    A percentage is of each layer's units. For a target size every layer loses the same number of them, the
    smallest with which the model has at most that size and which its config accepts.

    Raises:
        InvalidOptionError: a target that isn't below the model's size, or that can't be reached.
        UnsupportedModelError: as many heads as the family's code or config can't represent.
    """
    whole = {layer: whole_units(block, unit) for layer, block in blocks.items()}
    target = target_of(view, options)
    if target is None:
        counts = {layer: kept_by_percentage(size, options.percentage) for layer, size in whole.items()}
        pairs = [(counts[layer], whole[layer]) for layer in whole]
        warn_if_nothing_changes(pairs, asked=options.percentage > 0)
    else:
        removed = _removed_for(view, blocks, target, unit)
        counts = {layer: size - removed for layer, size in whole.items()}
    _check_representable(blocks, counts, unit)
    return counts


def _removed_for(
    view: WeightsView, blocks: Mapping[int, AttentionWeights], target: Target, unit: AttentionUnit
) -> int:
    """How many units every layer loses for a target size: the fewest that suffice and can be represented."""
    whole = {layer: whole_units(block, unit) for layer, block in blocks.items()}
    each = sum(_cost_per_unit(view, block, target, unit) for block in blocks.values())
    most, refusal = 0, None
    for removed in range(1, min(whole.values())):
        try:
            _check_representable(blocks, {layer: size - removed for layer, size in whole.items()}, unit)
        except UnsupportedModelError as error:
            refusal = error
            continue
        if removed * each >= target.excess:
            return removed
        most = removed
    if most == 0 and refusal is not None:
        raise refusal
    raise target.unreachable(target.size - most * each, f"{unit}s")


def _cost_per_unit(view: WeightsView, block: AttentionWeights, target: Target, unit: AttentionUnit) -> int:
    """What goes with one KV group, or with one query head of each group: of all projections, with biases."""
    heads, groups = block.num_heads, block.num_key_value_heads

    def weight_of(role: str) -> int:
        named = (block.names.get(name) for name in (role, f"{role}_bias"))
        return sum(target.weigh(view.model.get_parameter(name)) for name in named if name is not None)

    output = target.weigh(view.model.get_parameter(block.names["output"]))  # its bias stays
    if "qkv" in block.names:
        per_head = weight_of("qkv") // (heads + 2 * groups)
        query, shared = heads * per_head, 2 * groups * per_head
    else:
        query, shared = weight_of("query"), weight_of("key") + weight_of("value")
    if unit == "query_head":
        return (query + output) * groups // heads
    return (query + output + shared) // groups


def _check_representable(
    blocks: Mapping[int, AttentionWeights], counts: Mapping[int, int], unit: AttentionUnit
) -> None:
    """Refuse numbers of heads that the family's config can't represent, whichever heads they will be."""
    for layer, block in blocks.items():
        groups, per_group = block.num_key_value_heads, block.num_heads // block.num_key_value_heads
        kv, heads = (counts[layer], per_group) if unit == "kv_group" else (groups, counts[layer])
        if kv * heads < block.num_heads:
            query = torch.arange(kv)[:, None] * per_group + torch.arange(heads)
            block.check_heads(query.flatten(), torch.arange(kv))
