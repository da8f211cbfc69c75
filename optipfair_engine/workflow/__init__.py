"""What the ``optipfair`` command and the worker call: one function a kind of job, from folder to folder.

Importing this package loads neither torch nor transformers (PEP 562): ``prune`` streams without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.pruning.options import PruneOptions
    from optipfair_engine.workflow.analyze import analyze_checkpoint
    from optipfair_engine.workflow.evaluate import evaluate_checkpoint
    from optipfair_engine.workflow.importance import importance_checkpoint
    from optipfair_engine.workflow.prune import prune_checkpoint

_EXPORTS = {
    "PruneOptions": "optipfair_engine.pruning.options",
    "analyze_checkpoint": "optipfair_engine.workflow.analyze",
    "evaluate_checkpoint": "optipfair_engine.workflow.evaluate",
    "importance_checkpoint": "optipfair_engine.workflow.importance",
    "prune_checkpoint": "optipfair_engine.workflow.prune",
}

__all__ = [
    "PruneOptions",
    "analyze_checkpoint",
    "evaluate_checkpoint",
    "importance_checkpoint",
    "prune_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
