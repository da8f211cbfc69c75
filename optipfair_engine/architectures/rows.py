"""Which rows and columns of a layer's tensors a kept neuron or head means.

Both back ends of a plan call these functions: the views of a model in memory, and the edits of a checkpoint
on disk. Every weight is meant as ``[outputs, inputs]``; whoever stores it the other way round turns the axis.
Indices of neurons may be NumPy's, so that a checkpoint's are selected without torch; nothing here needs
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from optipfair_engine.architectures.base import MlpKind

if TYPE_CHECKING:
    from torch import Tensor

    Indices = Tensor | np.ndarray[Any, np.dtype[np.int64]]


class Kept(NamedTuple):
    """What stays of a weight ``[outputs, inputs]``; of a bias, where it has one, what stays of the outputs.

    Attributes:
        axis: ``outputs`` (rows) or ``inputs`` (columns).
        indices: int64 on the CPU, in the order of the result.
    """

    axis: Literal["outputs", "inputs"]
    indices: Indices


def kept_of_mlp(kind: MlpKind, kept: Indices, intermediate_size: int) -> dict[str, Kept]:
    """Role (``gate``, ``up``, ``down``) → what stays of its weight when the neurons ``kept`` stay.

    A neuron is a row of gate and up, and a column of down. In a fused GLU ``gate`` and ``up`` are one tensor:
    its rows 0…I−1 are the gate and I…2I−1 are up, so that a neuron is two of its rows.
    """
    rows = _joined(kept, kept + intermediate_size) if kind == "fused_glu" else kept
    return {"gate": Kept("outputs", rows), "up": Kept("outputs", rows), "down": Kept("inputs", kept)}


def _joined(first: Indices, second: Indices) -> Indices:
    if isinstance(first, np.ndarray):
        return np.concatenate((first, second))
    import torch

    # where a model is built without weights, the default device isn't that of the indices
    return torch.cat((first, torch.as_tensor(second, device=first.device)))


def gate_of(weight: Tensor, intermediate_size: int) -> Tensor:
    """The gate's rows ``[I, H]`` of the tensor that holds them (a view)."""
    return weight[:intermediate_size]


def up_of(kind: MlpKind, weight: Tensor, intermediate_size: int) -> Tensor:
    """The up projection's rows ``[I, H]`` of the tensor that holds them (a view)."""
    return weight[intermediate_size:] if kind == "fused_glu" else weight


def features_of_heads(heads: Tensor, head_dim: int) -> Tensor:
    """The features of these heads: head h covers h·head_dim … (h+1)·head_dim − 1."""
    import torch

    return (heads[:, None] * head_dim + torch.arange(head_dim, device="cpu")).flatten()


def kept_of_attention(
    query: Tensor, kv: Tensor, *, num_heads: int, num_key_value_heads: int, head_dim: int
) -> Mapping[str, Kept]:
    """Role → what stays of its weight when these query heads and key/value heads stay.

    A head is ``head_dim`` rows of its projection; a query head is as many columns of the output projection.
    A grouped ``qkv`` holds all query heads, then all key heads, then all value heads.
    """
    import torch

    queries, shared = features_of_heads(query, head_dim), features_of_heads(kv, head_dim)
    key_start = num_heads * head_dim
    value_start = key_start + num_key_value_heads * head_dim
    grouped = torch.cat((queries, key_start + shared, value_start + shared))
    return {
        "query": Kept("outputs", queries),
        "key": Kept("outputs", shared),
        "value": Kept("outputs", shared),
        "qkv": Kept("outputs", grouped),
        "output": Kept("inputs", queries),
    }


def kv_heads_of_qkv(rows: int, num_heads: int, head_dim: int) -> int:
    """How many key/value heads a grouped ``qkv`` of so many rows has beside its query heads."""
    return (rows // head_dim - num_heads) // 2


def check_indices(indices: Tensor, size: int, what: str) -> Tensor:
    """The indices, sorted, as int64 on the CPU.

    Raises:
        ValueError: there are none, or some are repeated or not below ``size``.
    """
    import torch

    flat = torch.as_tensor(indices, dtype=torch.int64, device="cpu").flatten()
    if flat.numel() == 0:
        raise ValueError(f"at least one of the {size} {what} must be kept")
    ordered: Tensor = torch.unique(flat)
    if ordered.numel() != flat.numel() or int(ordered[0]) < 0 or int(ordered[-1]) >= size:
        raise ValueError(f"indices of {what} must be distinct and in [0, {size})")
    return ordered


def check_groups(
    query: Tensor, kv: Tensor, *, num_heads: int, num_key_value_heads: int
) -> tuple[Tensor, Tensor]:
    """The indices of heads that stay, sorted, if they form equal groups.

    Query head h uses the key/value head ``h // (num_heads // num_key_value_heads)``. Every key/value head
    that stays must keep the same number (at least one) of its query heads, and no query head may lose its
    own.

    Raises:
        ValueError: they don't.
    """
    import torch

    query = check_indices(query, num_heads, "query heads")
    kv = check_indices(kv, num_key_value_heads, "key/value heads")
    owners = query // (num_heads // num_key_value_heads)
    counts = torch.bincount(owners, minlength=num_key_value_heads)
    if not torch.equal(torch.nonzero(counts).flatten(), kv) or len(set(counts[kv].tolist())) != 1:
        raise ValueError(
            "each kept key/value head needs the same number of its own query heads, "
            f"and no other query head may stay (query {query.tolist()}, key/value {kv.tolist()})"
        )
    return query, kv
