"""Floating-point numbers read as integers of the same bits: NumPy knows no bfloat16, and integers are quick.

The non-negative floats keep their order as integers; the negative ones have the sign bit set and keep the
order of their magnitudes. NaNs lie above infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Bits = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]

#: Torch's name of a type → its bits of +infinity.
INFINITY = {
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
    "float32": 0x7F80_0000,
    "float64": 0x7FF0_0000_0000_0000,
}
#: Small enough that the second look at a block finds it in the cache.
BLOCK = 1 << 18


def bits_are_finite(bits: Bits, dtype: str) -> bool:
    """Whether integers are the bits of finite numbers of a type (by torch's name); others hold no floats.

    The largest signed integer is the largest positive float, the largest unsigned one the most negative. Two
    integer maxima (8 GB/s) take a twentieth of the time of ``torch.isfinite(x).all()``.
    """
    infinity = INFINITY.get(dtype)
    if infinity is None:
        return True
    flat = bits.reshape(-1)
    signed, unsigned = flat.view(f"i{flat.itemsize}"), flat.view(f"u{flat.itemsize}")
    sign = 1 << (8 * flat.itemsize - 1)
    for start in range(0, len(flat), BLOCK):
        block = slice(start, start + BLOCK)
        if int(signed[block].max()) >= infinity or int(unsigned[block].max()) >= sign | infinity:
            return False
    return True


def row_ranges(bits: Bits, dtype: str) -> Floats:
    """``max + |min|`` of each row of a matrix ``[I, H]``, in float32 ``[I]``; not for float64."""
    unsigned, signed = bits.view(f"u{bits.itemsize}"), bits.view(f"i{bits.itemsize}")
    high, low = np.empty((2, len(bits)), dtype=unsigned.dtype)
    step = max(1, BLOCK // max(1, bits.shape[1]))
    for start in range(0, len(bits), step):
        rows = slice(start, start + step)
        high[rows] = signed[rows].max(axis=1).view(unsigned.dtype)
        low[rows] = unsigned[rows].max(axis=1)
    sign = 1 << (8 * bits.itemsize - 1)
    # of a row of one sign the other end is the one of least magnitude
    for ends, alike in ((high, high >= sign), (low, low < sign)):
        if alike.any():
            ends[alike] = unsigned[alike].min(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is the caller's to refuse
        found: Floats = _floats(high, dtype) + np.abs(_floats(low, dtype))
    return found


def _floats(bits: Bits, dtype: str) -> Floats:
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(dtype).astype(np.float32)
