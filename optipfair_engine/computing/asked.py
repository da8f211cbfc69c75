"""Which number type was asked for, and which ones forward passes then had; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar, cast, get_args

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.words import ComputeDtype

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Block:
    """What was asked for, and the number types that forward passes have had since."""

    asked: ComputeDtype = "auto"
    used: set[str] = field(default_factory=set)


_block: ContextVar[_Block | None] = ContextVar("compute_dtype", default=None)


@contextmanager
def computing(compute_dtype: ComputeDtype | None = None) -> Iterator[None]:
    """Within the block, whatever measures or chooses computes in this type unless it is told another.

    ``computed_in`` tells which types those were. ``None`` asks for what the block outside asks for.

    Raises:
        InvalidOptionError: no such choice.
    """
    token = _block.set(_Block(asked_for() if compute_dtype is None else checked(compute_dtype)))
    try:
        yield
    finally:
        _block.reset(token)


def takes_compute_dtype(workflow: Callable[P, R]) -> Callable[P, R]:
    """Run a workflow in a ``computing`` block of its ``compute_dtype``, a keyword or a field of its options.

    ``auto`` asks for nothing: then a block outside decides.
    """

    @wraps(workflow)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        asked = [getattr(value, "compute_dtype", None) for value in (*args, *kwargs.values())]
        asked.append(kwargs.get("compute_dtype"))
        given = next((value for value in asked if value not in (None, "auto")), None)
        with computing(cast("ComputeDtype | None", given)):
            return workflow(*args, **kwargs)

    return run


def asked_for() -> ComputeDtype:
    """What the innermost ``computing`` block asks for; outside any, ``auto``."""
    block = _block.get()
    return "auto" if block is None else block.asked


def computed_in() -> str | None:
    """The number types of the forward passes in the innermost ``computing`` block; None before the first."""
    block = _block.get()
    return ", ".join(sorted(block.used)) or None if block is not None else None


def note_use(dtype: str) -> None:
    """Remember, for ``computed_in``, that a forward pass is computed in this type."""
    block = _block.get()
    if block is not None:
        block.used.add(dtype)


def checked(compute_dtype: ComputeDtype) -> ComputeDtype:
    """The choice, if it is one.

    Raises:
        InvalidOptionError: it isn't.
    """
    choices = get_args(ComputeDtype)
    if compute_dtype not in choices:
        raise InvalidOptionError(
            f"compute_dtype must be one of {', '.join(choices)}, not {compute_dtype!r}: for any other type, "
            "load the model in it (dtype) and compute in that of the checkpoint"
        )
    return compute_dtype
