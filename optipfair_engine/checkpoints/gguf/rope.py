"""Rotary positions and the context of a model, as a GGUF file states them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optipfair_engine.errors import UnsupportedModelError

_YARN_DEFAULTS: Mapping[str, Any] = {
    "attention_factor": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions: base, the kind and factor of their scaling, and what divides each frequency."""

    base: float
    scaling: str | None = None
    factor: float = 1.0
    original_context: int | None = None
    divisors: Tensor | None = None
    """float32 ``[head_dim / 2]``, stored as the tensor ``rope_freqs.weight``."""


def context_length(config: Any) -> int:
    """The longest context in tokens in which llama.cpp, which slides no window here, computes the same."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    # no position further away than the window exists in a context that is no longer
    longest = int(config.max_position_embeddings)
    return min(longest, int(window)) if window and slides else longest


def rope_of(config: Any, head_dim: int) -> Rope:
    """The rotary positions of a config.

    Raises:
        UnsupportedModelError: of a type that isn't written; names the family and those that are.
    """
    said = dict(config.rope_parameters or {})
    kind, base = said.get("rope_type", "default"), float(said.get("rope_theta", 10_000.0))
    if said.get("partial_rotary_factor", 1.0) != 1.0:
        kind = "partial"
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, "linear", float(said["factor"]))
    if kind == "llama3":
        return Rope(base, divisors=_llama3_divisors(base, head_dim, said))
    if kind == "yarn" and all(said.get(key, value) == value for key, value in _YARN_DEFAULTS.items()):
        context = said.get("original_max_position_embeddings") or config.max_position_embeddings
        return Rope(base, "yarn", float(said["factor"]), int(context))
    raise UnsupportedModelError(
        f"{config.model_type}: rotary positions of type {kind} with these parameters are not written; "
        "default, linear, llama3 and plain yarn are"
    )


def _llama3_divisors(base: float, head_dim: int, said: Mapping[str, Any]) -> Tensor:
    """What divides each rotary frequency of Llama 3.1 (``rope_type`` llama3), float32 ``[head_dim / 2]``."""
    factor, context = float(said["factor"]), said["original_max_position_embeddings"]
    low, high = float(said["low_freq_factor"]), float(said["high_freq_factor"])
    powers: Tensor = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    waves_in_context = context / (2 * math.pi * base**powers)
    smooth: Tensor = ((waves_in_context - low) / (high - low)).clamp(0, 1)
    return (((1 - smooth) / factor + smooth) ** -1).float()
