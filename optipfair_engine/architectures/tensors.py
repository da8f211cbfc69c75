"""Selecting rows and columns of linear layers whose weights may be stored either way round."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optipfair_engine.architectures.rows import Kept
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


def keep(module: Linear, kept: Kept) -> None:
    """Keep these outputs (rows and bias entries) or inputs (columns), in the given order."""
    index = torch.as_tensor(kept.indices, device=module.weight.device)
    dim = 0 if kept.axis == "outputs" else 1
    replace_weight(module, matrix(module).detach().index_select(dim, index))
    if module.bias is not None and kept.axis == "outputs":
        bias = module.bias
        module.bias = nn.Parameter(bias.detach().index_select(0, index), requires_grad=bias.requires_grad)
