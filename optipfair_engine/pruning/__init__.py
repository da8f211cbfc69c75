"""Structured pruning: what to keep (importance), how much (sizes), the plan, and applying it."""

from __future__ import annotations

from optipfair_engine.pruning.plan import HeadPlan, PruningPlan

__all__ = ["HeadPlan", "PruningPlan"]
