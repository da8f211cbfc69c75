"""How long-running engine calls say how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: ``report(stage, done, total, message)``: ``done`` of ``total`` steps of a stage are finished.
Reporter: TypeAlias = Callable[[str, int, int, str], None]


def null_reporter(stage: str, done: int, total: int, message: str) -> None:
    """A reporter that says nothing."""
