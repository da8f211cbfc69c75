"""Structured pruning: what to keep (importance), how much (sizes), the plan, and applying it.

Importing this package loads no torch (PEP 562), so that the command line reads the choices of
its options quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.pruning.api import prune_model
    from optipfair_engine.pruning.apply import apply_plan
    from optipfair_engine.pruning.layer_importance import analyze_layer_importance
    from optipfair_engine.pruning.options import PruneOptions
    from optipfair_engine.pruning.plan import HeadPlan, PruningPlan
    from optipfair_engine.pruning.planner import make_plan
    from optipfair_engine.pruning.statistics import count_parameters, pruning_statistics

_EXPORTS = {
    "HeadPlan": "plan",
    "PruneOptions": "options",
    "PruningPlan": "plan",
    "analyze_layer_importance": "layer_importance",
    "apply_plan": "apply",
    "count_parameters": "statistics",
    "make_plan": "planner",
    "prune_model": "api",
    "pruning_statistics": "statistics",
}

__all__ = [
    "HeadPlan",
    "PruneOptions",
    "PruningPlan",
    "analyze_layer_importance",
    "apply_plan",
    "count_parameters",
    "make_plan",
    "prune_model",
    "pruning_statistics",
]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
