"""Structured pruning: what to keep (importance), how much (sizes), the plan, and applying it."""

from __future__ import annotations

from optipfair_engine.pruning.api import prune_model
from optipfair_engine.pruning.apply import apply_plan
from optipfair_engine.pruning.layer_importance import analyze_layer_importance
from optipfair_engine.pruning.options import PruneOptions
from optipfair_engine.pruning.plan import HeadPlan, PruningPlan
from optipfair_engine.pruning.planner import make_plan
from optipfair_engine.pruning.statistics import count_parameters, pruning_statistics

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
