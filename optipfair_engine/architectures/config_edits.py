"""Edits of a config that keep its per-layer statements in step with the modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError

from optipfair_engine.architectures.base import LayerLists

#: Head counts of unequal layers, for families whose config reads the one number to validate itself (Llama).
KEPT_HEADS = {
    "num_attention_heads": "kept_attention_heads",
    "num_key_value_heads": "kept_key_value_heads",
}


def layer_config(config: PreTrainedConfig, index: int) -> PreTrainedConfig:
    """The config of one layer: ``config`` itself where all are equal."""
    layer: PreTrainedConfig = config.per_layer_config[index] if config.is_heterogeneous else config
    return layer


def check_head_counts(config: PreTrainedConfig, heads: int, kv_heads: int, head_dim: int) -> None:
    """Whether the family's config accepts these numbers.

    Raises:
        ValueError: the config's own complaint.
    """
    trial = copy.copy(config)
    trial.num_attention_heads, trial.num_key_value_heads = heads, kv_heads
    trial.head_dim = head_dim
    try:
        trial.validate_architecture()
    except Exception as error:  # strict dataclasses wrap what the families raise
        cause = error.__cause__ or error
        raise ValueError(f"{heads} attention heads: {cause}") from error


def overrides(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """The config's ``per_layer_config`` as layer -> attribute -> value; empty if all layers are equal."""
    stored = config.to_dict().get("per_layer_config") or {}
    usual = {kept: name for name, kept in KEPT_HEADS.items()}
    return {
        int(index): {usual.get(name, name): value for name, value in values.items()}
        for index, values in stored.items()
    }


def _set_overrides(config: PreTrainedConfig, layers: dict[int, dict[str, Any]]) -> None:
    config.per_layer_config = dict(layers.items()) or None
    try:
        config.validate_architecture()
    except AmbiguousGlobalPerLayerAttributeError:
        config.per_layer_config = {
            index: {KEPT_HEADS.get(name, name): value for name, value in values.items()}
            for index, values in layers.items()
        }


def keep_layers(
    config: PreTrainedConfig,
    lists: LayerLists,
    count_attribute: str,
    kept: Sequence[int],
    dense: Sequence[int],
) -> None:
    """Make ``config`` describe the layers ``kept`` (old numbers); ``dense`` of them have no experts."""
    number = {old: new for new, old in enumerate(kept)}
    total = getattr(config, count_attribute)
    layers = overrides(config)
    config.per_layer_config = None
    values = {name: getattr(config, name, None) for name in lists.values}
    indices = {name: getattr(config, name, None) for name in lists.indices}
    leading = {name: getattr(config, name, None) for name in lists.leading}
    setattr(config, count_attribute, len(kept))
    for name, entries in values.items():
        if isinstance(entries, (list, tuple)) and len(entries) == total:
            setattr(config, name, [entries[i] for i in kept])
    for name, entries in indices.items():
        if entries:
            setattr(config, name, [number[i] for i in entries if i in number])
    for name, count in leading.items():
        if isinstance(count, int):
            setattr(config, name, sum(i < count for i in kept))
    _rewrite_sparse_step(config, lists, [number[i] for i in dense])
    if layers:
        _set_overrides(config, {number[i]: layer for i, layer in layers.items() if i in number})


def _rewrite_sparse_step(config: PreTrainedConfig, lists: LayerLists, dense: list[int]) -> None:
    """Say "layers … are dense" in place of "every n-th layer is sparse", which new numbers would break."""
    if lists.sparse_step is None:
        return
    step, dense_list = lists.sparse_step
    if getattr(config, step, 1) not in (None, 1):
        setattr(config, step, 1)
        setattr(config, dense_list, dense)


def write_sizes(config: PreTrainedConfig, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Write attribute -> layer -> size: as one number where all agree, else as ``per_layer_config``."""
    layers = overrides(config)
    config.per_layer_config = None
    for name, by_layer in sizes.items():
        for values in layers.values():
            values.pop(name, None)
            values.pop(KEPT_HEADS.get(name, name), None)
        current = getattr(config, name, None)
        distinct = set(by_layer.values())
        if len(distinct) == 1 and (hasattr(config, name) or name == "head_dim"):
            if current != (only := distinct.pop()) and not _says_by_default(config, name, only):
                setattr(config, name, only)
        elif not _says_by_default(config, name, *distinct):
            for index, value in by_layer.items():
                layers.setdefault(index, {})[name] = value
    layers = {index: values for index, values in layers.items() if values}
    if layers:
        _set_overrides(config, layers)


def _says_by_default(config: PreTrainedConfig, name: str, *sizes: int) -> bool:
    """Whether families that write no size, or null, mean this one: four times the hidden size."""
    if getattr(config, name, None) is not None or "head" in name:
        return False
    return set(sizes) == {4 * config.hidden_size}
