"""Which tensor of a checkpoint has which role, from names and shapes alone.

``CheckpointLayout`` is an ``architectures.view.WeightsView``, as ``ModelView`` is of a model in memory, so
that planning by weights is one code for both. It is read from the family's description and the shards'
headers in milliseconds, without building a model; ``structure`` compares its answers with those of a real
``ModelView`` before a result is published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures import config_names, refusals
from optipfair_engine.architectures.base import (
    TEXT_TOWERS,
    Architecture,
    AttentionSpec,
    ExpertsSpec,
    MlpSpec,
    StackSpec,
)
from optipfair_engine.architectures.registry import find_architecture
from optipfair_engine.architectures.rows import check_groups, gate_of, kv_heads_of_qkv, up_of
from optipfair_engine.computing.bits import row_ranges
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.streaming.experts import Stacked, StoredExperts, in_the_model
from optipfair_engine.streaming.source import DTYPE_NAMES, CheckpointSource, torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from optipfair_engine.computing.bits import Floats


class StoredMlp:
    """One layer's MLP in a checkpoint; names and meanings are those of ``MlpView``."""

    def __init__(self, layout: CheckpointLayout, index: int, spec: MlpSpec) -> None:
        self._source, self.kind = layout.source, spec.kind
        prefix = f"{layout.layers_path}.{index}"
        self.names = _names(layout.source, prefix, {"gate": spec.gate, "up": spec.up, "down": spec.down})
        missing = [
            path
            for path in (spec.gate, spec.up, spec.down)
            if path and f"{prefix}.{path}.weight" not in layout.source
        ]
        if missing:
            raise UnsupportedModelError(
                refusals.no_neurons(layout.model_type, index, missing, "the checkpoint")
            )
        self._stored = f"{layout.model_type}: the MLP weights of layer {index}"
        self._hidden_size = layout.hidden_size
        self._up, self._down = (self._source.info(self.names[role]).shape for role in ("up", "down"))
        if len(self._up) != 2 or len(self._down) != 2:
            raise UnsupportedModelError(f"{self._stored} are no matrices")

    @property
    def down_transposed(self) -> bool:
        """Whether weights are stored [inputs, outputs] (Conv1D); refused where shapes can't tell."""
        hidden = self._hidden_size
        straight = self._up[1] == hidden == self._down[0]
        turned = self._up[0] == hidden == self._down[1]
        if straight == turned:
            raise UnsupportedModelError(f"{self._stored} don't tell by their shapes how they are stored")
        return turned

    def _matrix(self, role: str) -> Tensor:
        weight = self._source.tensor(self.names[role])
        return weight.T if self.down_transposed else weight

    @property
    def intermediate_size(self) -> int:
        """Neurons of this layer."""
        if self._down == (self._hidden_size, self._hidden_size):  # whichever way they are stored
            return self._hidden_size
        return self._down[0 if self.down_transposed else 1]

    @property
    def gate_weight(self) -> Tensor | None:
        """The gate's rows [I, H]; None in a plain MLP."""
        return gate_of(self._matrix("gate"), self.intermediate_size) if "gate" in self.names else None

    @property
    def up_weight(self) -> Tensor:
        """The up projection's rows [I, H]."""
        return up_of(self.kind, self._matrix("up"), self.intermediate_size)

    @property
    def down_weight(self) -> Tensor:
        """The down projection [H, I]."""
        return self._matrix("down")

    def ranges(self) -> Floats | None:
        """``max + |min|`` of each neuron's rows [I], gate and up added; None where torch has to be asked."""
        if self._source.info(self.names["up"]).dtype == "F64" or self.down_transposed:
            return None
        up = self._ranges("up")
        if "gate" not in self.names:
            return up
        size = self.intermediate_size
        if self.kind == "fused_glu":
            return up[:size] + up[size:]
        return self._ranges("gate") + up

    def _ranges(self, role: str) -> Floats:
        name = self.names[role]
        return row_ranges(self._source.bits(name), DTYPE_NAMES[self._source.info(name).dtype])


class StoredAttention:
    """One layer's attention in a checkpoint; names and meanings are those of ``AttentionView``."""

    def __init__(self, layout: CheckpointLayout, index: int, spec: AttentionSpec) -> None:
        self._source, self._model_type = layout.source, layout.model_type
        self.heads_refused = spec.heads_refused
        paths = {role: getattr(spec, role) for role in ("query", "key", "value", "qkv", "output")}
        self.names = _names(layout.source, f"{layout.layers_path}.{index}", paths)
        if "output" not in self.names:
            raise UnsupportedModelError(f"{layout.model_type}: layer {index} has no {spec.output}")
        self.head_dim = layout.head_dim
        self.num_heads = self._source.info(self.names["output"]).shape[1] // self.head_dim
        self.num_key_value_heads = self._count_kv_heads()

    def _count_kv_heads(self) -> int:
        if "key" in self.names:
            return self._source.info(self.names["key"]).shape[0] // self.head_dim
        if "qkv" in self.names and self.heads_refused is None:
            rows = self._source.info(self.names["qkv"]).shape[0]
            return kv_heads_of_qkv(rows, self.num_heads, self.head_dim)
        return self.num_heads

    @property
    def o_weight(self) -> Tensor:
        """The output projection [H, num_heads·head_dim]."""
        return self._source.tensor(self.names["output"])

    @property
    def o_transposed(self) -> bool:
        """False: families whose code stores it the other way round can't lose heads."""
        return False

    def check_heads(self, query: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse what no attention can represent, as ``AttentionView.check_heads`` does."""
        refusals.check_heads_removable(self._model_type, self.heads_refused)
        return check_groups(query, kv, num_heads=self.num_heads, num_key_value_heads=self.num_key_value_heads)


class _Weights:
    """What stands for the model where planning asks it for a parameter."""

    def __init__(self, source: CheckpointSource, buffers: tuple[str, ...]) -> None:
        self._source, self._buffers = source, buffers

    def get_parameter(self, target: str) -> Tensor:
        """A tensor by its state-dict name."""
        return self._source.tensor(target)

    def parameters(self) -> Iterator[Tensor]:
        """Every stored tensor but buffers; tied ones once."""
        names = (name for name in self._source.untied if not _ends(name, self._buffers))
        return map(self._source.tensor, names)


class CheckpointLayout:
    """One stack of layers of a checkpoint; the same names and meanings as ``architectures.ModelView``.

    Raises:
        UnsupportedModelError: an unknown family, or its layers are not where they should be.
    """

    def __init__(self, source: CheckpointSource) -> None:
        self.source = source
        nested = source.config.get("text_config")
        self.config: Mapping[str, Any] = nested if isinstance(nested, dict) else source.config
        self.architecture: Architecture = find_architecture(str(self.config.get("model_type")))
        experts = self.architecture.experts
        self._buffers = experts.buffers if experts else ()
        self.model = _Weights(source, self._buffers)
        self.stack, self.layers_path = self._find_stack()
        start = len(self.layers_path) + 1
        numbers = {
            name[start:].split(".", 1)[0]
            for name in source.tensors
            if name.startswith(f"{self.layers_path}.")
        }
        self.num_layers = len(numbers)
        if numbers != {str(number) for number in range(self.num_layers)}:
            raise UnsupportedModelError(
                f"{self.model_type}: the checkpoint's layers are not numbered from 0 on"
            )

        self._dtype = self._one_dtype()

    @property
    def dtype(self) -> torch.dtype:
        """The type of all weights."""
        return torch_dtype(self._dtype)

    def _one_dtype(self) -> str:
        """The type that all weights share; refused if loading would convert them."""
        apart = [name for name in self.source.tensors if _ends(name, self._buffers)]
        stored = {info.dtype for name, (_, info) in self.source.tensors.items() if name not in apart}
        if any(self.source.info(name).dtype != "F32" for name in apart):
            raise UnsupportedModelError(
                f"{self.model_type}: {apart[0]} is not stored in float32; loading would convert it"
            )
        dtypes = {dtype for dtype in stored if "F" in dtype}
        stated = self.config.get("dtype", self.config.get("torch_dtype", self.source.config.get("dtype")))
        names = {DTYPE_NAMES[dtype] for dtype in dtypes}
        if len(dtypes) != 1 or (stated is not None and {str(stated)} != names):
            found = ", ".join(sorted(f"torch.{name}" for name in names))
            raise UnsupportedModelError(
                f"{self.model_type}: the weights are {found}, the config says {stated}; "
                "loading would convert them"
            )
        return dtypes.pop()

    @property
    def model_type(self) -> str:
        """The family's name in transformers."""
        return self.architecture.model_type

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._number(config_names.HIDDEN_SIZE)

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        stated = self.config.get("head_dim")
        return stated if isinstance(stated, int) else self.hidden_size // self._number(config_names.NUM_HEADS)

    def _number(self, names: tuple[str, ...]) -> int:
        value = config_names.stated(self.config, names)
        if value is None:
            raise UnsupportedModelError(f"{self.model_type}: config.json doesn't state {names[0]}")
        return value

    def _find_stack(self) -> tuple[StackSpec, str]:
        tried = []
        for stack in self.architecture.stacks:
            for tower in TEXT_TOWERS:
                path = f"{tower}{stack.path}"
                if any(name.startswith(f"{path}.0.") for name in self.source.tensors):
                    return stack, path
                tried.append(path)
        raise UnsupportedModelError(
            f"{self.model_type}: no layers found in the checkpoint; looked for {', '.join(tried)}"
        )

    def mlp(self, index: int) -> StoredMlp:
        """The MLP of one layer; raises ``UnsupportedModelError`` if there is none that can be narrowed."""
        return StoredMlp(self, index, refusals.check_width(self.architecture))

    def attention(self, index: int) -> StoredAttention:
        """The attention of one layer; raises ``UnsupportedModelError`` if it has none."""
        if self.architecture.attention is None:
            raise UnsupportedModelError(f"{self.model_type}: layer {index} has no attention")
        return StoredAttention(self, index, self.architecture.attention)

    def experts(self, index: int) -> StoredExperts:
        """The experts of one layer; raises ``UnsupportedModelError`` if there are none to be removed."""
        spec = refusals.check_experts(self.architecture)
        if index not in self.expert_layers():
            raise UnsupportedModelError(f"{self.model_type}: layer {index} has no experts")
        return StoredExperts(self.source, f"{self.layers_path}.{index}", spec, self.model_type)

    def expert_layers(self) -> list[int]:
        """The layers that have experts; raises ``UnsupportedModelError`` if none has any to be removed."""
        spec = refusals.check_experts(self.architecture)
        found = self._layers_with(spec)
        if not found:
            raise UnsupportedModelError(refusals.no_expert_layers(self.model_type))
        return found

    def _layers_with(self, spec: ExpertsSpec) -> list[int]:
        router = f"{spec.stored_router or spec.router}.weight"
        layers = range(self.num_layers)
        return [layer for layer in layers if f"{self.layers_path}.{layer}.{router}" in self.source]

    def in_the_model(self) -> tuple[dict[str, str], dict[str, Stacked]]:
        """What the stored tensors are in the model: see ``experts.in_the_model``."""
        spec = self.architecture.experts
        layers = [] if spec is None else [self.experts(layer) for layer in self._layers_with(spec)]
        return in_the_model({name: info for name, (_, info) in self.source.tensors.items()}, layers)

    def count_parameters(self) -> int:
        """Parameters in the checkpoint; tied ones count once, buffers don't."""
        names = (name for name in self.source.untied if not _ends(name, self._buffers))
        return sum(self.source.info(name).numel for name in names)

    def check_depth(self, indices: Iterable[int]) -> tuple[int, ...]:
        """The layers to remove, sorted; raises if that can't be done, as ``ModelView.check_depth`` does."""
        return refusals.check_depth(self.architecture, self.config.get, self.num_layers, indices)


def _ends(name: str, buffers: tuple[str, ...]) -> bool:
    return name.rpartition(".")[2] in buffers


def _names(source: CheckpointSource, prefix: str, paths: Mapping[str, str | None]) -> dict[str, str]:
    """Role (and ``role_bias``) → tensor name, for what the checkpoint holds."""
    names: dict[str, str] = {}
    for role, path in paths.items():
        for suffix, kind in (("", "weight"), ("_bias", "bias")):
            name = f"{prefix}.{path}.{kind}"
            if path and name in source:
                names[f"{role}{suffix}"] = name
    return names
