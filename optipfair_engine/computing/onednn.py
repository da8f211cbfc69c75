"""Float32 linear layers on a processor by oneDNN, which torch has but uses for other number types only.

torch gives these products to MKL, which is slower on processors of other makers, most of all where few tokens
meet a large weight. The weights are never changed, and the results differ by float32's rounding only.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Operation: TypeAlias = Callable[..., Tensor]

#: The types that a processor may be slow in.
HALF: Final = (torch.bfloat16, torch.float16)

#: How many numbers of a weight are held in float32 at once (64 MB): a larger one, such as that of the head
#: over a large vocabulary, is multiplied part by part.
LARGEST_COPY: Final = 2**24


def onednn_operation() -> Operation | None:
    """The operation that torch's own compiler puts for a linear layer; on ARM torch has quicker ones."""
    mkldnn = torch.backends.mkldnn
    wanted = mkldnn.is_available() and mkldnn.enabled
    if not wanted or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return getattr(packet, "default", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation | None) -> Tensor:
    """``F.linear``, by the operation where both would form the same product; errors are torch's own."""
    if operation is not None and _fits(x, weight, bias):
        return operation(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Scratch:
    """The memory that weights are cast into, one after the other; it belongs to one thread.

    Fresh memory for every cast costs more than the cast itself where weights are large, since the system
    hands it out page by page: 70 ms against 10 for 8192 × 2048 numbers (AMD, AVX2); for 1536 × 576 it is the
    same.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def wide(self, weight: Tensor) -> Tensor:
        """A weight in half precision as float32, valid until the next call; any other as it is."""
        if weight.dtype not in HALF:
            return weight
        count = weight.numel()
        if count > len(self._memory):
            self._memory = torch.empty(0)  # the smaller one goes before the larger one comes
            self._memory = torch.empty(count)
        return self._memory[:count].view(weight.shape).copy_(weight)


def wide_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation | None, scratch: Scratch
) -> Tensor:
    """``F.linear`` in float32 of tensors in half precision or float32, without a copy of a large weight.

    Where gradients are kept, they need the cast weight later: it then has memory of its own.
    """
    x, bias = wide(x), None if bias is None else wide(bias)
    if torch.is_grad_enabled():
        return linear(x, wide(weight), bias, operation)
    rows = max(1, LARGEST_COPY // max(1, weight.shape[-1]))
    if weight.dtype not in HALF or weight.dim() != 2 or len(weight) <= rows:
        return linear(x, scratch.wide(weight), bias, operation)
    output = x.new_empty(*x.shape[:-1], len(weight))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        output[..., part] = linear(
            x, scratch.wide(weight[part]), None if bias is None else bias[part], operation
        )
    return output


def wide(tensor: Tensor) -> Tensor:
    """A tensor in half precision as float32; any other as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor


def is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor in memory: a quantiser's subclass knows better how to multiply."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t.dtype == torch.float32 and is_plain(t) for t in (x, weight, bias) if t is not None)
        and x.dim() >= 2
        and weight.dim() == 2
        and x.numel() > 0
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    )
