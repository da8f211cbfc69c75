"""The block in which forward passes are computed as this processor computes them fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optipfair_engine.computing.asked import note_use
from optipfair_engine.computing.number_type import chosen_dtype, name_of
from optipfair_engine.computing.onednn import (
    HALF,
    Operation,
    Scratch,
    is_plain,
    linear,
    onednn_operation,
    wide,
    wide_linear,
)
from optipfair_engine.options.words import ComputeDtype


@contextmanager
def fast_products(model: nn.Module, compute_dtype: ComputeDtype | None = None) -> Iterator[torch.dtype]:
    """A block in which the model's forward passes are computed fast; gives the number type they have.

    Only passes that serve a measurement or a choice belong into it: not those that train a model, nor any
    whose speed is what is asked. A model on an accelerator computes as outside the block.

    In float32 a model stored in half precision computes as if it had been loaded in float32: each operation
    that needs a weight is given a cast copy, which goes with it, and activations are float32 throughout. The
    model's own tensors are neither changed nor replaced. Float32 linear layers without gradients are formed
    by oneDNN, where torch has it.

    Args:
        model: where its weights lie, and in which type, decides.
        compute_dtype: see ``number_type.chosen_dtype``.

    Raises:
        InvalidOptionError: the model can't be computed in this type.
    """
    dtype = chosen_dtype(model, compute_dtype)
    note_use(name_of(dtype))
    # who computes under autocast has chosen a number type already
    widen = dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    with _Widening(onednn_operation()) if widen and _holds_half(model) else _Products(onednn_operation()):
        yield dtype


def _holds_half(model: nn.Module) -> bool:
    return any(p.dtype in HALF for p in model.parameters())


class _Products(TorchFunctionMode):
    """Linear layers by oneDNN."""

    def __init__(self, operation: Operation | None) -> None:
        super().__init__()
        self._operation = operation

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs:
            return self._linear(*args)
        return self._call(func, args, dict(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias, self._operation)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class _Widening(_Products):
    """All that meets a weight in half precision is float32, and nothing is rounded to half on the way."""

    def __init__(self, operation: Operation | None) -> None:
        super().__init__(operation)
        self._scratch = Scratch()  # a mode is entered by one thread only

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if all(is_plain(tensor) for tensor in (x, weight, bias) if tensor is not None):
            return wide_linear(x, weight, bias, self._operation, self._scratch)
        return super()._linear(x, weight, bias)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.embedding:  # the rows that are asked for, not the table
            return wide(func(*args, **kwargs))
        if func in _ROUNDING:
            func = Tensor.float
        given = [*_leaves(args), *_leaves(kwargs.values())]
        if any(value in HALF for value in given if isinstance(value, torch.dtype)):
            # a layer that asks for its weight's type
            args = tuple(map(_wide_dtype, args))
            kwargs = {name: _wide_dtype(value) for name, value in kwargs.items()}
        tensors = [value for value in given if isinstance(value, Tensor)]
        if _would_round(tensors) and not _needs_the_tensor_itself(func, args):
            args = tuple(map(_widened, args))
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


_ROUNDING = (Tensor.bfloat16, Tensor.half)


def _leaves(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _would_round(tensors: list[Tensor]) -> bool:
    """Whether half precision meets float32, which most operations refuse, or is computed with by itself.

    The latter happens to vectors: some norms add one to their weight.
    """
    halves = [tensor for tensor in tensors if tensor.dtype in HALF]
    if not halves:
        return False
    return any(t.dim() <= 1 for t in halves) or any(t.dtype == torch.float32 for t in tensors)


def _needs_the_tensor_itself(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether the operation reads or writes something of its first argument that a copy hasn't got."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return True
    in_place = name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))
    return in_place and isinstance(args[0], Tensor) and args[0].dtype in HALF


def _wide_dtype(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in HALF else value


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return wide(value) if is_plain(value) else value
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        return type(value)(map(_widened, value)) if type(value) in (list, tuple) else value
    return value
