"""What planning and streaming read of a model, whether it lies in memory or in a checkpoint on disk.

``ModelView`` and ``streaming.CheckpointLayout`` both answer these questions, with the same names and
meanings: code that is typed by ``WeightsView`` works on either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from optipfair_engine.architectures.base import Architecture, MlpKind, StackSpec

if TYPE_CHECKING:
    from torch import Tensor


class MlpWeights(Protocol):
    """The MLP of one layer; I = intermediate size, H = hidden size."""

    @property
    def kind(self) -> MlpKind:
        """How gate and up are stored."""

    @property
    def names(self) -> Mapping[str, str]:
        """Role (``gate``, ``up``, ``down``; ``…_bias``) → state-dict name, for what exists."""

    @property
    def intermediate_size(self) -> int:
        """Neurons of this layer."""

    @property
    def gate_weight(self) -> Tensor | None:
        """The gate's rows ``[I, H]``; None in a plain MLP."""

    @property
    def up_weight(self) -> Tensor:
        """The up projection's rows ``[I, H]``."""

    @property
    def down_weight(self) -> Tensor:
        """The down projection ``[H, I]``."""

    @property
    def down_transposed(self) -> bool:
        """Whether the down weight is stored as ``[I, H]`` (Conv1D)."""


class AttentionWeights(Protocol):
    """The attention of one layer."""

    @property
    def heads_refused(self) -> str | None:
        """Why this family's heads can't be removed, or None."""

    @property
    def names(self) -> Mapping[str, str]:
        """Role (``query``, ``key``, ``value``, ``qkv``, ``output``; ``…_bias``) → state-dict name."""

    @property
    def head_dim(self) -> int:
        """Features of one head."""

    @property
    def num_heads(self) -> int:
        """Query heads."""

    @property
    def num_key_value_heads(self) -> int:
        """Key/value heads."""

    @property
    def o_weight(self) -> Tensor:
        """The output projection ``[H, num_heads·head_dim]``."""

    @property
    def o_transposed(self) -> bool:
        """Whether it is stored the other way round (Conv1D)."""

    def check_heads(self, query: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of heads that stay, sorted; raises if the family can't represent them."""


class ExpertWeights(Protocol):
    """The experts of one layer that its router chooses among."""

    @property
    def num_experts(self) -> int:
        """How many there are."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the model, of the tensors that have one entry an expert along their first dimension."""


class Parameters(Protocol):
    """Tensors by name: what is read of a whole model."""

    def get_parameter(self, target: str, /) -> Tensor:
        """A tensor by its state-dict name."""

    def parameters(self) -> Iterator[Tensor]:
        """Every tensor; tied ones once."""


class WeightsView(Protocol):
    """One stack of layers, with the description of its family."""

    @property
    def model(self) -> Parameters:
        """All of the model's tensors."""

    @property
    def architecture(self) -> Architecture:
        """The family."""

    @property
    def stack(self) -> StackSpec:
        """Which of the family's stacks this is."""

    @property
    def layers_path(self) -> str:
        """State-dict names of layer i start with ``{layers_path}.{i}.``."""

    @property
    def model_type(self) -> str:
        """The family's name in transformers."""

    @property
    def num_layers(self) -> int:
        """Layers of the stack."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""

    def mlp(self, index: int, /) -> MlpWeights:
        """The MLP of one layer; raises ``UnsupportedModelError`` if there is none that can be narrowed."""

    def attention(self, index: int, /) -> AttentionWeights:
        """The attention of one layer; raises ``UnsupportedModelError`` if it has none."""

    def experts(self, index: int, /) -> ExpertWeights:
        """The experts of one layer; raises ``UnsupportedModelError`` if there are none to be removed."""

    def expert_layers(self) -> list[int]:
        """The layers that have experts; raises ``UnsupportedModelError`` if none has any to be removed."""

    def check_depth(self, indices: Iterable[int], /) -> tuple[int, ...]:
        """The layers to remove, sorted; raises if they can't be removed."""
