"""In which number type forward passes are computed that serve a measurement or a choice.

A processor without products of bfloat16 or float16 computes a linear layer in them several times slower than
in float32, although nearly all checkpoints are stored so. Which is faster is found by a trial, not from the
processor's name: it then also holds where oneDNN or torch were told to use less than the processor has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optipfair_engine.computing.asked import asked_for, checked
from optipfair_engine.computing.onednn import HALF, Scratch, onednn_operation, wide_linear
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.words import ComputeDtype

#: Tokens of the trial, and how many numbers of a weight it uses at most: 6 ms a product where it is slowest.
_TOKENS: Final = 128
_TRIAL_NUMBERS: Final = 2**18
_SMALLEST: Final = 256
_ROUNDS: Final = 3
#: How much faster float32 must be: a tie keeps what users compute in.
_MARGIN: Final = 1.2


def chosen_dtype(model: nn.Module, compute_dtype: ComputeDtype | None = None) -> torch.dtype:
    """The number type that the model's forward passes are computed in.

    Args:
        model: a model in half precision on a CPU has the choice; any other computes in its own type.
        compute_dtype: ``None`` takes that of the innermost ``computing`` block; outside any, ``auto``.

    Raises:
        InvalidOptionError: no such choice, or float32 on an accelerator for a model in half precision.
    """
    asked = asked_for() if compute_dtype is None else checked(compute_dtype)
    weight = _largest_half_weight(model)
    if weight is None or asked == "checkpoint":
        return _own_dtype(model) if weight is None else weight.dtype
    if weight.device.type != "cpu":
        if asked == "float32":
            raise InvalidOptionError(
                f"compute_dtype float32 is for models on a CPU, and this one is on {weight.device}: "
                "load it with dtype float32"
            )
        return weight.dtype
    if asked == "float32":
        return torch.float32
    # a tiny product tells nothing but the price of a call
    columns = max(int(weight.shape[1]), _SMALLEST)
    rows = min(max(len(weight), _SMALLEST), max(1, _TRIAL_NUMBERS // columns))
    faster = float32_is_faster(weight.dtype, rows, columns, torch.get_num_threads())
    return torch.float32 if faster else weight.dtype


def name_of(dtype: torch.dtype) -> str:
    """A number type as configs and metrics name it."""
    return str(dtype).removeprefix("torch.")


@cache
def float32_is_faster(dtype: torch.dtype, rows: int, columns: int, threads: int) -> bool:
    """Try a linear layer ``[rows, columns]`` in ``dtype`` and, casts included, in float32: once a process."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    x = torch.randn(_TOKENS, columns, generator=generator)
    narrow, operation, scratch = x.to(dtype), onednn_operation(), Scratch()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        half = _Stopwatch(lambda: F.linear(narrow, weight))
        single = _Stopwatch(lambda: wide_linear(x, weight, None, operation, scratch))
        for _ in range(_ROUNDS):  # in turn, so that another process slows both
            half.run()
            single.run()
    return half.shortest > _MARGIN * single.shortest


class _Stopwatch:
    def __init__(self, product: Callable[[], Tensor]) -> None:
        self._product = product
        self.shortest = float("inf")
        product()  # the first run sets up what later ones reuse

    def run(self) -> None:
        start = time.perf_counter()
        self._product()
        self.shortest = min(self.shortest, time.perf_counter() - start)


def _largest_half_weight(model: nn.Module) -> Tensor | None:
    """The largest matrix in half precision outside the embedding tables; a stack of them as one."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = [
        p
        for p in model.parameters()
        if p.dtype in HALF and p.dim() >= 2 and p.numel() and id(p) not in tables
    ]
    largest = max(found, key=lambda p: p.numel(), default=None)
    if largest is None:
        return None
    return largest if largest.dim() == 2 else largest.flatten(0, -2)


def _own_dtype(model: nn.Module) -> torch.dtype:
    types = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(types, torch.get_default_dtype())
