"""Float32 linear layers on a processor by oneDNN, which torch has but uses for other number types only."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def onednn_linear() -> AbstractContextManager[object]:
    """A block in which ``F.linear`` of float32 tensors without gradients is computed by oneDNN.

    torch gives these products to MKL, which is slower on processors of other makers, most of all where few
    tokens meet a large weight. The weights are neither copied nor changed, and the results differ by
    float32's rounding only. Everything else is computed as outside the block; so is all of it where torch has
    no such operation.
    """
    operation = _operation()
    return nullcontext() if operation is None else _OneDnnLinear(operation)


def _operation() -> Callable[..., Tensor] | None:
    # the operation that torch's own compiler puts for a linear layer; on ARM torch has quicker ones
    mkldnn = torch.backends.mkldnn
    wanted = mkldnn.is_available() and mkldnn.enabled
    if not wanted or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return getattr(packet, "default", None)


class _OneDnnLinear(TorchFunctionMode):
    def __init__(self, operation: Callable[..., Tensor]) -> None:
        super().__init__()
        self._operation = operation

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _fits(*args):
            x, weight, bias = (*args, None)[:3]
            return self._operation(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the product is one that both would form alike; errors are left to torch's own texts."""
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(_is_plain(tensor) for tensor in (x, weight, bias) if tensor is not None)
        and x.dim() >= 2
        and weight.dim() == 2
        and x.numel() > 0
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    )


def _is_plain(tensor: Tensor) -> bool:
    # a subclass (of a quantiser, say) knows better how it is multiplied
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )
