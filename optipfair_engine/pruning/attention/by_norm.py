"""Choosing the attention heads that stay (``ATTENTION``), by weight norm.

Two units keep shapes that grouped-query attention can represent: whole KV groups (a key/value head with all
its query heads), or the same number of query heads from each group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from optipfair_engine.architectures.refusals import check_heads_removable
from optipfair_engine.errors import NonFiniteWeightsError
from optipfair_engine.plans.plan import HeadPlan, PruningPlan, new_plan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.attention.units import kept_units, whole_units
from optipfair_engine.pruning.width.by_score import target_layers
from optipfair_engine.pruning.width.scores import top_indices

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures.view import AttentionWeights, Parameters, WeightsView
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import AttentionUnit


def head_plan(scores: Tensor, groups: int, unit: AttentionUnit, kept: int) -> HeadPlan:
    """The heads that stay, by score.

    Args:
        scores: one for each query head ``[num_heads]``; a group's score is the sum over its heads.
        groups: number of KV heads; query head ``h`` belongs to group ``h // (num_heads // groups)``.
        unit: drop whole groups, or heads evenly from each group.
        kept: how many groups, or how many heads of each group, stay.
    """
    by_group = scores.reshape(groups, -1)
    per_group = by_group.shape[1]
    if unit == "kv_group":
        kv = top_indices(by_group.sum(dim=1), kept)
        query = tuple(group * per_group + head for group in kv for head in range(per_group))
        return HeadPlan(query, kv)
    chosen = [top_indices(row, kept) for row in by_group]
    query = tuple(group * per_group + head for group, heads in enumerate(chosen) for head in heads)
    return HeadPlan(query, tuple(range(groups)))


def weight_energy(model: Parameters, attention: AttentionWeights) -> Tensor:
    """The squared Frobenius norm of each query head's own weights ``[num_heads]``, in float32.

    A head's own weights are its rows of the query and its columns of the output projection, plus an equal
    share of the rows of the key and value head that it uses.
    """
    heads, groups, size = attention.num_heads, attention.num_key_value_heads, attention.head_dim
    output = attention.o_weight.float().square().sum(dim=0).reshape(heads, size).sum(dim=1)
    query, key, value = _projection_rows(model, attention)
    per_head = query.reshape(heads, size).sum(dim=1)
    shared = (key + value).reshape(groups, size).sum(dim=1) * (groups / heads)
    return output + per_head + shared.repeat_interleave(heads // groups)


def _projection_rows(model: Parameters, attention: AttentionWeights) -> tuple[Tensor, Tensor, Tensor]:
    """The squared norm of each row of the query, key and value projections."""
    names = attention.names

    def rows(role: str) -> Tensor:
        return model.get_parameter(names[role]).detach().float().square().sum(dim=1)

    if "qkv" not in names:
        return rows("query"), rows("key"), rows("value")
    q = attention.num_heads * attention.head_dim
    kv = attention.num_key_value_heads * attention.head_dim
    query, key, value = torch.split(rows("qkv"), [q, kv, kv])
    return query, key, value


def locate_attentions(view: WeightsView, layers: Iterable[int]) -> dict[int, AttentionWeights]:
    """The attention blocks of these layers.

    Raises:
        UnsupportedModelError: the family's heads can't be removed; the text says why.
    """
    found = {layer: view.attention(layer) for layer in layers}
    for attention in found.values():
        check_heads_removable(view.model_type, attention.heads_refused)
    return found


def attention_plan(
    view: WeightsView, options: PruneOptions, *, report: Reporter = null_reporter
) -> PruningPlan:
    """Plan attention pruning by weight norm.

    On real models a choice by weights alone damages much more than a calibrated one.

    Raises:
        InvalidOptionError: an option out of range.
        UnsupportedModelError: heads that the family's code can't lose.
        NonFiniteWeightsError: NaN or infinite weights.
    """
    layers, unit = target_layers(view, options.layer_indices), options.attention_unit
    blocks = locate_attentions(view, layers)
    counts = kept_units(view, blocks, options, unit)
    provenance = Provenance.of(
        options,
        head_selection="weight_norm",
        layer_indices=None if options.layer_indices is None else tuple(layers),
    )
    return new_plan(view, provenance, kept_heads=heads_by_norm(view, blocks, counts, unit, report=report))


def heads_by_norm(
    view: WeightsView,
    blocks: Mapping[int, AttentionWeights],
    counts: Mapping[int, int],
    unit: AttentionUnit,
    *,
    report: Reporter = null_reporter,
) -> dict[int, HeadPlan]:
    """The heads that stay by weight norm, of each layer that keeps fewer units (``counts``) than it has.

    Raises:
        NonFiniteWeightsError: NaN or infinite weights.
    """
    heads: dict[int, HeadPlan] = {}
    for done, (layer, block) in enumerate(blocks.items(), 1):
        whole = whole_units(block, unit)
        if counts[layer] < whole:
            scores = weight_energy(view.model, block)
            if not bool(torch.isfinite(scores).all()):
                raise NonFiniteWeightsError(f"the attention of layer {layer} holds NaN or infinite weights")
            heads[layer] = head_plan(scores, block.num_key_value_heads, unit, counts[layer])
        report("select", done, len(blocks), f"layer {layer}: {counts[layer]} of {whole} {unit}s stay")
    return heads
