"""Which tensors a checkpoint of a family holds, from its config alone: names and shapes, without a model.

It is said for decoders whose layers are all alike. Tests compare it with transformers' own models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from optipfair_engine.architectures import config_names
from optipfair_engine.architectures.base import Architecture
from optipfair_engine.architectures.registry import ARCHITECTURES

Shape: TypeAlias = tuple[int, ...]

#: Always or never, or the config's word for it with what its absence means.
Flag: TypeAlias = bool | tuple[str, bool]

_BEFORE_EACH = ("input_layernorm", "post_attention_layernorm")
_AFTER_EACH = ("post_attention_layernorm", "post_feedforward_layernorm")
_AROUND_EACH = (*_BEFORE_EACH, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class StoredSpec:
    """What a family stores besides the matrices of attention and MLP.

    ``qk_norm`` is one norm of a head's size for queries and one for keys, or across all heads. ``unless`` are
    config flags with which it isn't told.
    """

    norms: tuple[str, ...] = _BEFORE_EACH
    norm_bias: bool = False
    final_norm: bool = True
    qk_norm: Literal["head", "all"] | None = None
    qkv_bias: Flag = False
    output_bias: Flag = False
    mlp_bias: Flag = False
    tied: bool = False
    unless: tuple[str, ...] = ()


_ATTENTION_BIAS: Flag = ("attention_bias", False)
_MLP_BIAS: Flag = ("mlp_bias", False)
_BIASES: dict[str, Any] = {"qkv_bias": _ATTENTION_BIAS, "output_bias": _ATTENTION_BIAS}
_USE_BIAS: Flag = ("use_bias", True)

#: By ``model_type``; ``tied`` is what the family means where its config doesn't say ``tie_word_embeddings``.
STORED: Mapping[str, StoredSpec] = MappingProxyType(
    {
        "llama": StoredSpec(**_BIASES, mlp_bias=_MLP_BIAS),
        "mistral": StoredSpec(),
        "ministral": StoredSpec(),
        "ministral3": StoredSpec(),
        "qwen2": StoredSpec(qkv_bias=True),
        "qwen3": StoredSpec(**_BIASES, qk_norm="head"),
        "gemma": StoredSpec(**_BIASES, tied=True),
        "gemma2": StoredSpec(_AROUND_EACH, **_BIASES, tied=True),
        "gemma3_text": StoredSpec(_AROUND_EACH, **_BIASES, qk_norm="head", tied=True),
        "smollm3": StoredSpec(**_BIASES, mlp_bias=_MLP_BIAS, tied=True),
        "olmo": StoredSpec((), final_norm=False, **_BIASES),
        "olmo2": StoredSpec(_AFTER_EACH, **_BIASES, qk_norm="all"),
        "olmo3": StoredSpec(_AFTER_EACH, **_BIASES, qk_norm="all"),
        "granite": StoredSpec(**_BIASES, mlp_bias=_MLP_BIAS),
        "cohere": StoredSpec(("input_layernorm",), **_BIASES, tied=True, unless=("use_qk_norm",)),
        "cohere2": StoredSpec(("input_layernorm",), **_BIASES, tied=True),
        "exaone4": StoredSpec(_AFTER_EACH, qk_norm="head"),
        "helium": StoredSpec(qkv_bias=_ATTENTION_BIAS, mlp_bias=_MLP_BIAS),
        "seed_oss": StoredSpec(
            qkv_bias=("attention_bias", True), output_bias=("attention_out_bias", False), mlp_bias=_MLP_BIAS
        ),
        "phi3": StoredSpec(),
        "glm": StoredSpec(qkv_bias=("attention_bias", True)),
        "glm4": StoredSpec(
            (*_BEFORE_EACH, "post_self_attn_layernorm", "post_mlp_layernorm"),
            qkv_bias=("attention_bias", True),
        ),
        "starcoder2": StoredSpec(
            norm_bias=True, qkv_bias=_USE_BIAS, output_bias=_USE_BIAS, mlp_bias=_USE_BIAS, tied=True
        ),
        "nemotron": StoredSpec(norm_bias=True, **_BIASES, mlp_bias=_MLP_BIAS),
        "arcee": StoredSpec(**_BIASES, mlp_bias=_MLP_BIAS),
    }
)


def stored_tensors(config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Name → shape of each tensor of a causal language model, the tied head left out; None: not told.

    Args:
        config: ``config.json`` as plain data.
    """
    model_type = str(config.get("model_type"))
    spec, family = STORED.get(model_type), ARCHITECTURES.get(model_type)
    classes = config.get("architectures")
    causal = isinstance(classes, list) and len(classes) == 1 and str(classes[0]).endswith("ForCausalLM")
    if spec is None or family is None or not causal or config.get("per_layer_config"):
        return None
    sizes = _sizes(config, family)
    if sizes is None or any(config.get(flag) for flag in spec.unless):
        return None
    found: dict[str, Shape] = {"model.embed_tokens.weight": (sizes.vocabulary, sizes.hidden)}
    for layer in range(sizes.layers):
        parts = _layer(config, spec, family, sizes)
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in parts}
    if spec.final_norm:
        found |= dict(_norm("model.norm", sizes.hidden, spec))
    if not config.get("tie_word_embeddings", spec.tied):
        found["lm_head.weight"] = (sizes.vocabulary, sizes.hidden)
    return found


@dataclass(frozen=True)
class _Sizes:
    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    head: int
    vocabulary: int


def _sizes(config: Mapping[str, Any], family: Architecture) -> _Sizes | None:
    hidden = config_names.stated(config, config_names.HIDDEN_SIZE)
    layers = config_names.stated(config, config_names.NUM_LAYERS)
    heads = config_names.stated(config, config_names.NUM_HEADS)
    vocabulary = config_names.stated(config, ("vocab_size",))
    inner = config_names.intermediate_size(config, family)
    if not (hidden and layers and heads and vocabulary and inner):
        return None
    head = config_names.stated(config, ("head_dim",)) or hidden // heads
    groups = config_names.stated(config, config_names.NUM_KEY_VALUE_HEADS) or heads
    return _Sizes(layers, hidden, inner, heads * head, groups * head, head, vocabulary)


def _layer(
    config: Mapping[str, Any], spec: StoredSpec, family: Architecture, sizes: _Sizes
) -> Iterator[tuple[str, Shape]]:
    attention, mlp = family.attention, family.mlp
    if attention is None or mlp is None:
        return
    queries, keys, hidden, inner = sizes.queries, sizes.keys, sizes.hidden, sizes.inner
    linear: dict[str | None, tuple[Shape, Flag]] = {
        attention.query: ((queries, hidden), spec.qkv_bias),
        attention.key: ((keys, hidden), spec.qkv_bias),
        attention.value: ((keys, hidden), spec.qkv_bias),
        attention.qkv: ((queries + 2 * keys, hidden), spec.qkv_bias),
        attention.output: ((hidden, queries), spec.output_bias),
        mlp.gate: ((inner, hidden), spec.mlp_bias),
        mlp.up: (((2 if mlp.kind == "fused_glu" else 1) * inner, hidden), spec.mlp_bias),
        mlp.down: ((hidden, inner), spec.mlp_bias),
    }
    for path, (shape, biased) in linear.items():
        if path is not None:
            yield f"{path}.weight", shape
            if _holds(config, biased):
                yield f"{path}.bias", shape[:1]
    for norm in spec.norms:
        yield from _norm(norm, hidden, spec)
    if spec.qk_norm is not None:
        across = spec.qk_norm == "all"
        yield f"{attention.module}.q_norm.weight", (queries if across else sizes.head,)
        yield f"{attention.module}.k_norm.weight", (keys if across else sizes.head,)


def _norm(path: str, size: int, spec: StoredSpec) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.weight", (size,)
    if spec.norm_bias:
        yield f"{path}.bias", (size,)


def _holds(config: Mapping[str, Any], flag: Flag) -> bool:
    return flag if isinstance(flag, bool) else bool(config.get(*flag))
