"""What a plan means for each tensor of a checkpoint: copy, select, replace, rename or leave out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optipfair_engine.architectures.rows import Kept, kept_of_attention, kept_of_mlp
from optipfair_engine.errors import PlanError, UnsupportedModelError
from optipfair_engine.plans.plan import HeadPlan, PruningPlan
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.source import ITEM_BYTES, CheckpointSource

if TYPE_CHECKING:
    from torch import Tensor

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Selection:
    """Which slices along a dimension of the stored tensor stay: int64, in the order of the result."""

    dim: int
    indices: Indices


@dataclass(frozen=True)
class TensorEdit:
    """One tensor of the result.

    Attributes:
        name: its name in the result.
        original: the tensor that it is made of.
        dtype: safetensors' name of its type.
        shape: its shape in the result.
        layer: the original layer that it belongs to, if any.
        selection: what stays of the original; none: all of it, byte by byte.
        replacement: a refitted weight that takes its place.
    """

    name: str
    original: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None
    selection: Selection | None = None
    replacement: Tensor | None = None

    @property
    def numel(self) -> int:
        """Elements in the result."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the result."""
        return self.numel * ITEM_BYTES[self.dtype]


def plan_edits(layout: CheckpointLayout, plan: PruningPlan) -> list[TensorEdit]:
    """The tensors of the result, in the order in which the source stores them.

    Raises:
        PlanError: the plan doesn't fit the checkpoint.
        UnsupportedModelError: it can't be carried out on tensors one by one.
    """
    plan.validate(layout)
    if plan.removed_layers:
        layout.check_depth(plan.removed_layers)
        if layout.stack.first_layer_only:
            raise UnsupportedModelError(
                f"{layout.model_type}: its first layer owns what all use; it is not streamed"
            )
    unknown = sorted(name for name in plan.weights if name not in layout.source)
    if unknown:
        raise PlanError(f"the plan holds weights that the checkpoint doesn't have: {', '.join(unknown)}")
    selections = _selections(layout, plan)
    experts = _renamed_experts(layout, plan)
    new_numbers = {old: new for new, old in enumerate(_remaining(layout, plan))}
    written = set(layout.source.untied)
    edits = []
    for name in _in_file_order(layout.source):
        layer = _layer_of(name, layout.layers_path)
        if name not in written or (layer is not None and layer not in new_numbers):
            continue
        new_name = experts.get(name, name)
        if new_name is None:
            continue
        if layer is not None:
            new_name = _renumbered(new_name, layout.layers_path, layer, new_numbers[layer])
        edits.append(
            _edit(layout.source, name, new_name, layer, selections.get(name), plan.weights.get(name))
        )
    return edits


def _remaining(layout: CheckpointLayout, plan: PruningPlan) -> list[int]:
    return [layer for layer in range(layout.num_layers) if layer not in plan.removed_layers]


def _in_file_order(source: CheckpointSource) -> list[str]:
    """Shard by shard, by offset: the disk is read forwards."""
    return sorted(
        source.tensors, key=lambda name: (source.tensors[name][0].name, source.info(name).start, name)
    )


def _layer_of(name: str, layers_path: str) -> int | None:
    if not name.startswith(f"{layers_path}."):
        return None
    return int(name[len(layers_path) + 1 :].split(".", 1)[0])


def _renumbered(name: str, layers_path: str, old: int, new: int) -> str:
    return f"{layers_path}.{new}{name[len(f'{layers_path}.{old}') :]}"


def _edit(
    source: CheckpointSource,
    name: str,
    new_name: str,
    layer: int | None,
    selection: Selection | None,
    replacement: Tensor | None,
) -> TensorEdit:
    info = source.info(name)
    shape = list(info.shape)
    if selection is not None:
        shape[selection.dim] = selection.indices.size
    if replacement is not None and list(replacement.shape) != shape:
        raise PlanError(f"the plan's {name} has shape {list(replacement.shape)}, needed is {shape}")
    return TensorEdit(new_name, name, info.dtype, tuple(shape), layer, selection, replacement)


def _selections(layout: CheckpointLayout, plan: PruningPlan) -> dict[str, Selection]:
    """Tensor name → what stays of it, for the layers that stay."""
    found: dict[str, Selection] = {}
    for layer in _remaining(layout, plan):
        if layer in plan.kept_neurons:
            found |= _neuron_selections(layout, layer, _indices(plan.kept_neurons[layer]))
        if layer in plan.kept_heads:
            found |= _head_selections(layout, layer, plan.kept_heads[layer])
        if layer in plan.kept_experts:
            selection = Selection(0, _indices(plan.kept_experts[layer]))
            found |= dict.fromkeys(layout.experts(layer).whole, selection)
    return found


def _renamed_experts(layout: CheckpointLayout, plan: PruningPlan) -> dict[str, str | None]:
    """Tensor of a single expert → its name in the result; ``None`` if that expert goes."""
    found: dict[str, str | None] = {}
    for layer, kept in plan.kept_experts.items():
        found |= layout.experts(layer).renamed(kept)
    return found


def _indices(numbers: Sequence[int]) -> Indices:
    return np.array(numbers, dtype=np.int64)


def _neuron_selections(layout: CheckpointLayout, layer: int, kept: Indices) -> dict[str, Selection]:
    mlp = layout.mlp(layer)
    return _named(
        mlp.names, kept_of_mlp(mlp.kind, kept, mlp.intermediate_size), transposed=mlp.down_transposed
    )


def _head_selections(layout: CheckpointLayout, layer: int, heads: HeadPlan) -> dict[str, Selection]:
    import torch

    attention = layout.attention(layer)
    kept = kept_of_attention(
        torch.tensor(heads.query),
        torch.tensor(heads.kv),
        num_heads=attention.num_heads,
        num_key_value_heads=attention.num_key_value_heads,
        head_dim=attention.head_dim,
    )
    return _named(attention.names, kept, transposed=attention.o_transposed)


def _named(names: Mapping[str, str], kept: Mapping[str, Kept], *, transposed: bool) -> dict[str, Selection]:
    """Tensor name → what stays of it, for the roles that the checkpoint holds; a bias follows its outputs."""
    found: dict[str, Selection] = {}
    for role, (axis, indices) in kept.items():
        if role in names:
            found[names[role]] = Selection(int((axis == "inputs") != transposed), np.asarray(indices))
        if axis == "outputs" and f"{role}_bias" in names:
            found[names[f"{role}_bias"]] = Selection(0, np.asarray(indices))
    return found
