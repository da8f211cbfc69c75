"""Experts that a checkpoint holds one by one, for a model whose weights are mapped: a layer's at a time.

transformers computes with all experts of a layer in one tensor, which no view of the files can be. So that
tensor is put together when the layer is first called, and goes when another layer is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from optipfair_engine.streaming.experts import Stacked
    from optipfair_engine.streaming.source import CheckpointSource


class ExpertsInTurn:
    """Has the experts of one layer in memory: of the layer that was called last."""

    def __init__(self, source: CheckpointSource) -> None:
        self._source = source
        self._loaded: nn.Module | None = None
        self._empty: dict[str, nn.Parameter | None] = {}

    def attend(self, model: nn.Module, stacked: Mapping[str, Stacked]) -> None:
        """Load the experts of each layer of ``model`` before they are called; names are the model's."""
        owners: dict[str, dict[str, Stacked]] = {}
        for name, stack in stacked.items():
            owner, _, attribute = name.rpartition(".")
            owners.setdefault(owner, {})[attribute] = stack
        for owner, tensors in owners.items():
            model.get_submodule(owner).register_forward_pre_hook(partial(self._load, tensors))

    def _load(self, tensors: Mapping[str, Stacked], module: nn.Module, _arguments: object) -> None:
        if self._loaded is module:
            return
        if self._loaded is not None:
            self._loaded._parameters.update(self._empty)
        self._loaded, self._empty = module, {name: module._parameters[name] for name in tensors}
        for name, stack in tensors.items():
            module._parameters[name] = nn.Parameter(stack.read(self._source), requires_grad=False)
