"""What ``config.json`` calls the sizes of a model, in the order in which the names are looked for.

Transformers maps most of these to one attribute each; this is for readers of the file that don't load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optipfair_engine.architectures.base import Architecture

HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
NUM_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
NUM_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
#: The longest text that positions are known for; families without a limit (ALiBi) state none.
MAX_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
#: Experts of a layer that tokens choose among.
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_INTERMEDIATE_SIZE = ("intermediate_size", "d_ff")


def stated(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first positive whole number that the config states under one of ``names``."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def intermediate_size(config: Mapping[str, Any], family: Architecture | None) -> int | None:
    """The neurons of a layer's MLP: under the family's own name, or the usual four times the hidden size."""
    if family is None or family.mlp is None:
        names: tuple[str, ...] = _INTERMEDIATE_SIZE
    else:
        names = (family.mlp.size_attribute,) if family.mlp.size_attribute else ()
    hidden = stated(config, HIDDEN_SIZE)
    return stated(config, names) or (4 * hidden if hidden else None)
