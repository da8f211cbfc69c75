"""How long-running engine calls say how far they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

#: ``report(stage, done, total, message)``: ``done`` of ``total`` steps of a stage are finished.
Reporter: TypeAlias = Callable[[str, int, int, str], None]


def null_reporter(stage: str, done: int, total: int, message: str) -> None:
    """A reporter that says nothing."""


#: ``announce(what, data)``: something that is decided or found once. ``execution`` with the words of a
#: ``Route``, and ``resumed`` with the ``layer`` that is the first to be computed again.
Announcer: TypeAlias = Callable[[str, Mapping[str, Any]], None]


def null_announcer(what: str, data: Mapping[str, Any]) -> None:
    """An announcer that says nothing."""
