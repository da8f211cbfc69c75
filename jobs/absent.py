"""Keeping others from importing what this service has no use for, at its start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Let nothing import a package meanwhile, if it isn't there already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python says: this import fails
    try:
        yield
    finally:
        del sys.modules[name]
