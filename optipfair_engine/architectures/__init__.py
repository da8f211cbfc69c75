"""What model families look like, and views of a model's layers.

Importing this package loads neither torch nor transformers (PEP 562): the streaming path starts without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.architectures.attention import AttentionView
    from optipfair_engine.architectures.base import (
        Architecture,
        AttentionSpec,
        ComponentKind,
        MlpSpec,
        StackSpec,
    )
    from optipfair_engine.architectures.mlp import MlpView
    from optipfair_engine.architectures.model_view import ModelView, locate
    from optipfair_engine.architectures.registry import ARCHITECTURES, find_architecture

_EXPORTS = {
    "ARCHITECTURES": "registry",
    "Architecture": "base",
    "AttentionSpec": "base",
    "AttentionView": "attention",
    "ComponentKind": "base",
    "MlpSpec": "base",
    "MlpView": "mlp",
    "ModelView": "model_view",
    "StackSpec": "base",
    "find_architecture": "registry",
    "locate": "model_view",
}

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "AttentionSpec",
    "AttentionView",
    "ComponentKind",
    "MlpSpec",
    "MlpView",
    "ModelView",
    "StackSpec",
    "find_architecture",
    "locate",
]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
