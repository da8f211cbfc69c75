"""Structured pruning and bias analysis of language models.

Importing this package loads nothing heavy: public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.checkpoints import load_model, load_pruned, load_tokenizer, save_pruned
    from optipfair_engine.pruning import PruningPlan, analyze_layer_importance, apply_plan, prune_model

__version__ = "0.1.0"

_EXPORTS = {
    "PruningPlan": "optipfair_engine.pruning",
    "analyze_layer_importance": "optipfair_engine.pruning",
    "apply_plan": "optipfair_engine.pruning",
    "load_model": "optipfair_engine.checkpoints",
    "load_pruned": "optipfair_engine.checkpoints",
    "load_tokenizer": "optipfair_engine.checkpoints",
    "prune_model": "optipfair_engine.pruning",
    "save_pruned": "optipfair_engine.checkpoints",
}

__all__ = [
    "PruningPlan",
    "analyze_layer_importance",
    "apply_plan",
    "load_model",
    "load_pruned",
    "load_tokenizer",
    "prune_model",
    "save_pruned",
]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'optipfair_engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
