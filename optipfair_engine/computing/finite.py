"""A quick search for NaN and infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from optipfair_engine.computing.bits import INFINITY, bits_are_finite


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity (types of eight bits are taken as finite)."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in INFINITY:
        return True
    if tensor.device.type != "cpu":
        # min and max carry NaN and infinity along, and need no copy of the tensor
        return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))
    integer: torch.dtype = getattr(torch, f"int{8 * tensor.itemsize}")
    return bits_are_finite(tensor.detach().reshape(-1).view(integer).numpy(), name)
