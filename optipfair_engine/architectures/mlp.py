"""One layer's MLP as the pruning code sees it: neurons are rows of gate and up, and columns of down."""

from __future__ import annotations

from torch import Tensor, nn

from optipfair_engine.architectures.base import MlpKind, MlpSpec
from optipfair_engine.architectures.rows import check_indices, gate_of, kept_of_mlp, up_of
from optipfair_engine.architectures.tensors import Linear, as_linear, is_transposed, keep, matrix

#: what families call the size on the MLP module itself
_SIZE_ATTRIBUTES = ("intermediate_size", "intermediate_dim", "ffn_dim", "inner_dim")


class MlpView:
    """The MLP of layer ``index``; I = intermediate size, H = hidden size.

    In a fused GLU ``gate_module`` and ``up_module`` are one module: rows 0…I−1 are the gate, rows I…2I−1 up.
    """

    def __init__(self, layer: nn.Module, prefix: str, spec: MlpSpec, model_type: str) -> None:
        self.kind: MlpKind = spec.kind
        self._layer, self._prefix, self._spec = layer, prefix, spec
        self.up_module = self._linear(spec.up, model_type)
        self.down_module = self._linear(spec.down, model_type)
        self.gate_module: Linear | None = self._linear(spec.gate, model_type) if spec.gate else None

    def _linear(self, path: str, model_type: str) -> Linear:
        return as_linear(self._layer.get_submodule(path), f"{self._prefix}.{path}", model_type)

    @property
    def module(self) -> nn.Module:
        """The MLP module; the layer itself where a family has none of its own (OPT)."""
        return self._layer.get_submodule(self._spec.module) if self._spec.module else self._layer

    @property
    def intermediate_size(self) -> int:
        """Neurons of this layer."""
        return int(matrix(self.down_module).shape[1])

    @property
    def gate_weight(self) -> Tensor | None:
        """The gate's rows [I, H]; None in a plain MLP. A view: don't write to it."""
        if self.gate_module is None:
            return None
        return gate_of(matrix(self.gate_module), self.intermediate_size)

    @property
    def up_weight(self) -> Tensor:
        """The up projection's rows [I, H] (a view)."""
        return up_of(self.kind, matrix(self.up_module), self.intermediate_size)

    @property
    def down_weight(self) -> Tensor:
        """The down projection [H, I] (a view)."""
        return matrix(self.down_module)

    @property
    def down_transposed(self) -> bool:
        """Whether the checkpoint stores the down weight as [I, H] (Conv1D) instead of [H, I]."""
        return is_transposed(self.down_module)

    @property
    def names(self) -> dict[str, str]:
        """Role -> state-dict name; fused families name one tensor for gate and up."""
        paths = {"gate": self._spec.gate, "up": self._spec.up, "down": self._spec.down}
        modules = {"gate": self.gate_module, "up": self.up_module, "down": self.down_module}
        names = {role: f"{self._prefix}.{path}.weight" for role, path in paths.items() if path}
        for role, module in modules.items():
            if module is not None and module.bias is not None:
                names[f"{role}_bias"] = f"{self._prefix}.{paths[role]}.bias"
        return names

    def keep(self, indices: Tensor) -> None:
        """Keep these neurons (int64 indices, any order; stored ascending), in place.

        New parameters have the old dtype, device and ``requires_grad``. The config is not touched: see
        ``ModelView.write_sizes_to_config``.

        Raises:
            ValueError: empty, repeated or out-of-range indices.
        """
        size = self.intermediate_size
        kept = check_indices(indices, size, "neurons")
        selected = kept_of_mlp(self.kind, kept, size)
        keep(self.up_module, selected["up"])
        if self.gate_module is not None and self.gate_module is not self.up_module:
            keep(self.gate_module, selected["gate"])
        keep(self.down_module, selected["down"])
        self._note_size(size, kept.numel())

    def _note_size(self, old: int, new: int) -> None:
        for name in _SIZE_ATTRIBUTES:
            if self.module.__dict__.get(name) == old:
                setattr(self.module, name, new)
