"""One layer's attention as the pruning code sees it."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedConfig

from optipfair_engine.architectures.base import AttentionSpec
from optipfair_engine.architectures.config_edits import check_head_counts
from optipfair_engine.architectures.refusals import check_heads_removable
from optipfair_engine.architectures.rows import check_groups, kept_of_attention, kv_heads_of_qkv
from optipfair_engine.architectures.tensors import Linear, as_linear, is_transposed, keep, matrix
from optipfair_engine.errors import UnsupportedModelError

_HEADS = ("num_heads", "num_attention_heads")
_HEAD_DIMS = ("v_head_dim", "head_dim", "head_size", "key_value_proj_dim")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")


class AttentionView:
    """The attention of one layer; H = hidden size.

    ``o_weight`` is [H, num_heads·head_dim]; query head h uses KV group
    ``h // (num_heads // num_key_value_heads)``.
    """

    def __init__(
        self, layer: nn.Module, prefix: str, spec: AttentionSpec, model_type: str, config: PreTrainedConfig
    ) -> None:
        self._layer, self._prefix, self._spec, self._model_type = layer, prefix, spec, model_type
        self._config = config
        self.module = layer.get_submodule(spec.module)
        self.o_module = self._linear(spec.output)
        sizes = (getattr(self.module, name, None) for name in _HEAD_DIMS)
        default = config.hidden_size // config.num_attention_heads
        self.head_dim = next((size for size in sizes if isinstance(size, int)), default)
        self.num_heads = int(self.o_weight.shape[1]) // self.head_dim
        self.num_key_value_heads = self._count_kv_heads()

    def _count_kv_heads(self) -> int:
        if self._spec.key is not None:
            return self._outputs(self._spec.key) // self.head_dim
        if self._spec.qkv is not None and self._spec.heads_refused is None:
            return kv_heads_of_qkv(self._outputs(self._spec.qkv), self.num_heads, self.head_dim)
        return next((n for name in _KV_HEADS if (n := getattr(self.module, name, None))), self.num_heads)

    def _outputs(self, path: str) -> int:
        return int(matrix(self._linear(path)).shape[0])

    def _linear(self, path: str) -> Linear:
        return as_linear(self._layer.get_submodule(path), f"{self._prefix}.{path}", self._model_type)

    @property
    def heads_refused(self) -> str | None:
        """Why this family's heads can't be removed, or None."""
        return self._spec.heads_refused

    @property
    def o_weight(self) -> Tensor:
        """The output projection [H, num_heads·head_dim] (a view)."""
        return matrix(self.o_module)

    @property
    def o_transposed(self) -> bool:
        """Whether the checkpoint stores the output projection the other way round (Conv1D)."""
        return is_transposed(self.o_module)

    @property
    def names(self) -> dict[str, str]:
        """Role (query, key, value, qkv, output; ``…_bias``) -> state-dict name, for what exists."""
        names: dict[str, str] = {}
        for role in ("query", "key", "value", "qkv", "output"):
            path: str | None = getattr(self._spec, role)
            if path is None:
                continue
            names[role] = f"{self._prefix}.{path}.weight"
            if getattr(self._layer.get_submodule(path), "bias", None) is not None:
                names[f"{role}_bias"] = f"{self._prefix}.{path}.bias"
        return names

    def check_heads(self, query: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        """The indices, sorted; raises if the family or the grouping can't represent them.

        Each kept KV group must keep the same number (at least one) of its query heads, and no query head may
        lose its group.

        Raises:
            UnsupportedModelError: the family's heads can't be removed.
            ValueError: the indices don't form equal groups.
        """
        check_heads_removable(self._model_type, self._spec.heads_refused)
        query, kv = check_groups(
            query, kv, num_heads=self.num_heads, num_key_value_heads=self.num_key_value_heads
        )
        try:
            check_head_counts(self._config, query.numel(), kv.numel(), self.head_dim)
        except ValueError as error:
            raise UnsupportedModelError(f"{self._model_type}: {error}") from error
        return query, kv

    def keep_heads(self, query: Tensor, kv: Tensor) -> None:
        """Keep these query heads and key/value heads, in place; see ``check_heads`` for what is refused."""
        query, kv = self.check_heads(query, kv)
        selected = kept_of_attention(
            query,
            kv,
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )
        for role, kept in selected.items():
            path: str | None = getattr(self._spec, role)
            if path is not None:
                keep(self._linear(path), kept)
        self._note_heads(query.numel(), kv.numel())

    def _note_heads(self, heads: int, kv_heads: int) -> None:
        self.num_heads, self.num_key_value_heads = heads, kv_heads
        updates = dict.fromkeys(_HEADS, heads) | dict.fromkeys(_KV_HEADS, kv_heads)
        updates["num_key_value_groups"] = heads // kv_heads
        for name, value in updates.items():
            if isinstance(self.module.__dict__.get(name), int):
                setattr(self.module, name, value)
