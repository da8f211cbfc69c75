"""What the ``optipfair`` command and the worker call: one function a kind of job, from folder to folder."""

from __future__ import annotations

from optipfair_engine.pruning.options import PruneOptions
from optipfair_engine.workflow.analyze import analyze_checkpoint
from optipfair_engine.workflow.evaluate import evaluate_checkpoint
from optipfair_engine.workflow.importance import importance_checkpoint
from optipfair_engine.workflow.prune import prune_checkpoint

__all__ = [
    "PruneOptions",
    "analyze_checkpoint",
    "evaluate_checkpoint",
    "importance_checkpoint",
    "prune_checkpoint",
]
