"""The config of a result as an edit of the source's ``config.json``, for the plans where that is one number.

It saves the import of transformers where nothing is to be checked; everything else is left to ``structure``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.streaming.layout import CheckpointLayout


def plain_config(layout: CheckpointLayout, plan: PruningPlan) -> dict[str, Any] | None:
    """The result's ``config.json``, or None where more changes than sizes that all layers share."""
    config = copy.deepcopy(layout.source.config)
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    changes: dict[str, set[int]] = {}
    if plan.kept_neurons and layout.architecture.mlp is not None:
        name = layout.architecture.mlp.size_attribute or ""
        changes[name] = {_neurons(layout, plan, layer) for layer in range(layout.num_layers)}
    if plan.kept_heads:
        if len(plan.kept_heads) < layout.num_layers or not isinstance(text.get("head_dim"), int):
            return None  # without head_dim, models divide the hidden size by the number of heads
        counts = {len(heads.query) for heads in plan.kept_heads.values()}
        if any(layout.hidden_size % count for count in counts):
            return None  # some families' configs refuse such a number
        changes["num_attention_heads"] = counts
        changes["num_key_value_heads"] = {len(heads.kv) for heads in plan.kept_heads.values()}
    known = all(isinstance(text.get(name), int) and len(sizes) == 1 for name, sizes in changes.items())
    if plan.removed_layers or plan.kept_experts or text.get("per_layer_config") or not known:
        return None
    text.update({name: sizes.pop() for name, sizes in changes.items()})
    return config


def _neurons(layout: CheckpointLayout, plan: PruningPlan, layer: int) -> int:
    kept = plan.kept_neurons.get(layer)
    return layout.mlp(layer).intermediate_size if kept is None else len(kept)
