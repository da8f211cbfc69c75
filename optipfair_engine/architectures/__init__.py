"""What model families look like, and views of a model's layers."""

from __future__ import annotations

from optipfair_engine.architectures.attention import AttentionView
from optipfair_engine.architectures.base import Architecture, AttentionSpec, ComponentKind, MlpSpec, StackSpec
from optipfair_engine.architectures.mlp import MlpView
from optipfair_engine.architectures.model_view import ModelView, locate
from optipfair_engine.architectures.registry import ARCHITECTURES, find_architecture

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
