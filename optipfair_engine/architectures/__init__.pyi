from .attention import AttentionView as AttentionView
from .base import (
    Architecture as Architecture,
    AttentionSpec as AttentionSpec,
    ComponentKind as ComponentKind,
    MlpSpec as MlpSpec,
    StackSpec as StackSpec,
)
from .mlp import MlpView as MlpView
from .model_view import ModelView as ModelView, locate as locate
from .registry import ARCHITECTURES as ARCHITECTURES, find_architecture as find_architecture
