"""One layer's mixture of experts as the pruning code sees it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from optipfair_engine.architectures.base import ExpertsSpec
from optipfair_engine.architectures.rows import check_indices
from optipfair_engine.errors import UnsupportedModelError


class ExpertsView:
    """The experts of one layer that its router chooses among; shared experts are not among them.

    ``module`` is called with the tokens ``[tokens, H]``, the numbers of the experts that each is sent to
    ``[tokens, k]``, and their gates ``[tokens, k]``.
    """

    def __init__(self, layer: nn.Module, prefix: str, spec: ExpertsSpec, model_type: str) -> None:
        self._prefix, self._spec, self._model_type = prefix, spec, model_type
        self.module, self.router = layer.get_submodule(spec.experts), layer.get_submodule(spec.router)
        self.num_experts = self._count()

    def _count(self) -> int:
        """The number that every tensor agrees on."""
        sizes = set()
        for name, tensor in self._tensors():
            if not tensor.is_floating_point() or tensor.itemsize < 2:  # float8 has its scales elsewhere
                raise UnsupportedModelError(
                    f"{self._model_type}: {name} is quantised ({tensor.dtype}); load it unquantised"
                )
            sizes.add(int(tensor.shape[0]) if tensor.dim() else 0)
        if len(sizes) != 1:
            found = ", ".join(map(str, sorted(sizes))) or "none"
            raise UnsupportedModelError(
                f"{self._model_type}: the tensors of {self._prefix}'s router and experts don't agree on the "
                f"number of experts ({found})"
            )
        return sizes.pop()

    def _owners(self) -> tuple[tuple[str, nn.Module], ...]:
        return ((self._spec.router, self.router), (self._spec.experts, self.module))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path, owner in self._owners():
            for tensors in (owner.named_parameters(), owner.named_buffers()):
                for name, tensor in tensors:
                    yield f"{self._prefix}.{path}.{name}", tensor

    @property
    def names(self) -> tuple[str, ...]:
        """State-dict names of the tensors that have one entry an expert along their first dimension."""
        return tuple(name for name, _ in self._tensors())

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of these tensors that are parameters."""
        return tuple(parameter for _, owner in self._owners() for parameter in owner.parameters())

    def keep(self, indices: Tensor) -> None:
        """Keep these experts (int64 indices, any order; stored ascending), in place.

        New tensors have the old dtype, device and ``requires_grad``. The config is not touched: see
        ``ModelView.write_sizes_to_config``.

        Raises:
            ValueError: empty, repeated or out-of-range indices.
        """
        kept = check_indices(indices, self.num_experts, "experts")
        for _, owner in self._owners():
            for name, parameter in owner.named_parameters():
                chosen = parameter.detach().index_select(0, kept.to(parameter.device))
                owner.register_parameter(name, nn.Parameter(chosen, requires_grad=parameter.requires_grad))
            for name, buffer in owner.named_buffers():
                setattr(owner, name, buffer.index_select(0, kept.to(buffer.device)))
            if isinstance(owner.__dict__.get("num_experts"), int):
                owner.__dict__["num_experts"] = kept.numel()
        self.num_experts = kept.numel()
