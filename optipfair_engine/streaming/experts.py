"""The experts of a mixture in a checkpoint: which stored tensors make up which tensors of the model.

Most families' checkpoints hold the matrices of each expert as tensors of their own, and transformers stacks
them as it loads: an expert goes by leaving its tensors out and renumbering those behind it. Others hold the
stacks themselves: there an expert is a slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optipfair_engine.architectures.base import ExpertsSpec
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.headers import TensorInfo
from optipfair_engine.streaming.source import CheckpointSource

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stacked:
    """A tensor of the model ``[experts, outputs, inputs]`` that the checkpoint holds in parts.

    Attributes:
        shape: in the model.
        parts: for each expert the stored matrices that make up its slice, one below the other.
    """

    shape: tuple[int, ...]
    parts: tuple[tuple[str, ...], ...]

    def read(self, source: CheckpointSource) -> Tensor:
        """The tensor, in memory of its own."""
        import torch

        return torch.stack([torch.cat([source.tensor(name) for name in names]) for names in self.parts])


class StoredExperts:
    """One layer's experts in a checkpoint; ``num_experts`` and ``names`` are those of ``ExpertsView``.

    Attributes:
        num_experts: how many there are.
        whole: stored tensors with one entry an expert along their first dimension → their names in the model.
        stacked: name in the model → the stored matrices that it is stacked of.
    """

    def __init__(self, source: CheckpointSource, prefix: str, spec: ExpertsSpec, model_type: str) -> None:
        self._source, self._prefix, self._spec = source, prefix, spec
        self._said = f"{model_type}: the experts of {prefix}"
        router = f"{prefix}.{spec.stored_router or spec.router}."
        self.whole = _below(source, router, f"{prefix}.{spec.router}.")
        self.stacked: dict[str, Stacked] = {}
        own = f"{prefix}.{spec.experts}."
        if self._path(0, 0) in source:
            self._stack(own)
        else:
            self.whole |= _below(source, own, own)
        weight = f"{router}weight"
        if weight not in source:
            raise UnsupportedModelError(f"{self._said} have no router {weight}")
        self.num_experts = source.info(weight).shape[0]

    def _path(self, role: int, expert: int) -> str | None:
        """The stored name of an expert's gate, up or down matrix, if a checkpoint may hold it apart."""
        stored = self._spec.stored
        return None if stored is None else f"{self._prefix}.{stored[role].format(expert)}.weight"

    def _stack(self, own: str) -> None:
        count = 0
        while self._path(0, count) in self._source:
            count += 1
        gates, ups, downs = (tuple(str(self._path(role, e)) for e in range(count)) for role in range(3))
        gate, up, down = (self._shape_of_all(names) for names in (gates, ups, downs))
        joined = tuple(zip(gates, ups, strict=True))
        self.stacked[f"{own}gate_up_proj"] = Stacked((count, gate[0] + up[0], gate[1]), joined)
        self.stacked[f"{own}down_proj"] = Stacked((count, *down), tuple((name,) for name in downs))

    def _shape_of_all(self, names: Sequence[str]) -> tuple[int, ...]:
        infos = [self._source.tensors.get(name) for name in names]
        shapes = {None if found is None else found[1].shape for found in infos}
        shape = shapes.pop()
        if shapes or shape is None or len(shape) != 2:
            raise UnsupportedModelError(f"{self._said} are not all there, or are not of one shape")
        return shape

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the model of the tensors that have one entry an expert."""
        return (*self.whole.values(), *self.stacked)

    def renamed(self, kept: Sequence[int]) -> dict[str, str | None]:
        """Stored tensors of single experts → their names when these experts stay, ``None`` if they go."""
        numbers = {old: new for new, old in enumerate(kept)}
        found: dict[str, str | None] = {}
        for expert in range(self.num_experts if self.stacked else 0):
            for role in range(3):
                new = numbers.get(expert)
                found[str(self._path(role, expert))] = None if new is None else self._path(role, new)
        return found


def in_the_model(
    tensors: Mapping[str, TensorInfo], experts: Sequence[StoredExperts]
) -> tuple[dict[str, str], dict[str, Stacked]]:
    """What a checkpoint's tensors are in the model.

    Returns:
        Name in the model → stored name, of tensors that are there as they are; and of those that are stacked.
    """
    stacked = {name: stack for layer in experts for name, stack in layer.stacked.items()}
    parts = {name for stack in stacked.values() for names in stack.parts for name in names}
    renamed = {stored: name for layer in experts for stored, name in layer.whole.items()}
    return {renamed.get(name, name): name for name in tensors if name not in parts}, stacked


def _below(source: CheckpointSource, prefix: str, new_prefix: str) -> dict[str, str]:
    """Stored tensors whose names start with a prefix → the same with another prefix."""
    found = (name for name in source.tensors if name.startswith(prefix))
    return {name: f"{new_prefix}{name.removeprefix(prefix)}" for name in found}
