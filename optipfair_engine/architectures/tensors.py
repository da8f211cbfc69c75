"""Selecting rows and columns of linear layers whose weights may be stored either way round."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optipfair_engine.errors import UnsupportedModelError

Linear: TypeAlias = nn.Linear | Conv1D


def as_linear(module: nn.Module, name: str, model_type: str) -> Linear:
    """``module`` if its weight is a plain floating-point matrix in memory.

    Raises:
        UnsupportedModelError: quantised, offloaded or not a linear layer.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(module, (nn.Linear, Conv1D)) or not isinstance(weight, Tensor):
        raise UnsupportedModelError(f"{model_type}: {name} is a {type(module).__name__}, not a linear layer")
    if weight.is_meta and getattr(getattr(module, "_hf_hook", None), "offload", False):
        raise UnsupportedModelError(
            f"{model_type}: {name} is offloaded by accelerate; load the model without offloading to prune it"
        )
    if not weight.is_floating_point() or weight.itemsize < 2:  # float8 has its scales elsewhere
        raise UnsupportedModelError(
            f"{model_type}: {name} is quantised ({weight.dtype}); load it unquantised"
        )
    return module


def is_transposed(module: Linear) -> bool:
    """Whether the weight is stored [inputs, outputs] (``Conv1D``) instead of [outputs, inputs]."""
    return isinstance(module, Conv1D)


def matrix(module: Linear) -> Tensor:
    """The weight as a view [outputs, inputs], whatever the storage."""
    return module.weight.T if is_transposed(module) else module.weight


def replace_weight(module: Linear, weight: Tensor) -> None:
    """Give ``module`` the weight [outputs, inputs]; dtype, device, ``requires_grad``, storage order stay."""
    old = module.weight
    stored = (weight.T if is_transposed(module) else weight).to(device=old.device, dtype=old.dtype)
    # contiguous() alone would keep another tensor's storage alive, or alias the caller's
    fresh = torch.empty(stored.shape, dtype=old.dtype, device=old.device).copy_(stored.detach())
    module.weight = nn.Parameter(fresh, requires_grad=old.requires_grad)
    outputs, inputs = weight.shape
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
    else:
        module.nx, module.nf = inputs, outputs


def keep_outputs(module: Linear, indices: Tensor) -> None:
    """Keep these outputs (rows and bias entries), in the given order."""
    index = indices.to(module.weight.device)
    replace_weight(module, matrix(module).detach().index_select(0, index))
    if module.bias is not None:
        bias = module.bias
        module.bias = nn.Parameter(bias.detach().index_select(0, index), requires_grad=bias.requires_grad)


def keep_inputs(module: Linear, indices: Tensor) -> None:
    """Keep these inputs (columns), in the given order."""
    replace_weight(module, matrix(module).detach().index_select(1, indices.to(module.weight.device)))


def check_indices(indices: Tensor, size: int, what: str) -> Tensor:
    """Indices as sorted int64 on the CPU, without repetition, within ``size``, at least one."""
    flat = torch.as_tensor(indices, dtype=torch.int64, device="cpu").flatten()
    if flat.numel() == 0:
        raise ValueError(f"at least one of the {size} {what} must be kept")
    ordered: Tensor = torch.unique(flat)
    if ordered.numel() != flat.numel() or int(ordered[0]) < 0 or int(ordered[-1]) >= size:
        raise ValueError(f"indices of {what} must be distinct and in [0, {size})")
    return ordered
