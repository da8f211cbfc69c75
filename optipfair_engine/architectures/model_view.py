"""A whole model as the pruning code sees it: its layers, and edits that keep config and modules in step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from optipfair_engine.architectures import config_edits, refusals
from optipfair_engine.architectures.attention import AttentionView
from optipfair_engine.architectures.base import (
    TEXT_TOWERS,
    UNSAID_SIZE,
    Architecture,
    ComponentKind,
    StackSpec,
)
from optipfair_engine.architectures.experts import ExpertsView
from optipfair_engine.architectures.mlp import MlpView
from optipfair_engine.architectures.registry import ARCHITECTURES, find_architecture
from optipfair_engine.architectures.routing import Routing, stated_routing
from optipfair_engine.errors import UnsupportedModelError

_LAYER_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number")
_MLP_COMPONENTS = ("gate_proj", "up_proj", "down_proj", "mlp_output")


class ModelView:
    """One stack of layers of ``model``, with its family's description.

    Attributes:
        config: the text config (of a multimodal model, its text tower's).
        layers_path: e.g. ``model.layers``; state-dict names of layer i start with ``{layers_path}.{i}.``.
    """

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, stack: StackSpec, layers_path: str
    ) -> None:
        self.model, self.architecture, self.stack, self.layers_path = model, architecture, stack, layers_path

    @property
    def config(self) -> PreTrainedConfig:
        """The config that describes the layers."""
        return self.model.config.get_text_config()

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        layers = self.model.get_submodule(self.layers_path)
        if not isinstance(layers, nn.ModuleList):
            raise UnsupportedModelError(
                f"{self.layers_path!r} is a {type(layers).__name__}, not a ModuleList"
            )
        return layers

    @property
    def num_layers(self) -> int:
        """Layers of this stack."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def model_type(self) -> str:
        """The family's name in transformers."""
        return self.architecture.model_type

    @property
    def is_causal(self) -> bool:
        """Whether no position of this stack sees later ones (BERT's do, unless it was made a decoder)."""
        return self.stack.causal or bool(getattr(self.config, "is_decoder", False))

    def mlp(self, index: int) -> MlpView:
        """The MLP of one layer.

        Raises:
            UnsupportedModelError: the family or this layer (mixture of experts) has none to narrow.
        """
        spec = refusals.check_width(self.architecture)
        layer = self.layers[index]
        missing = [path for path in (spec.gate, spec.up, spec.down) if path and not _has(layer, path)]
        if missing:
            found = type(layer.get_submodule(spec.module)).__name__ if spec.module else type(layer).__name__
            raise UnsupportedModelError(refusals.no_neurons(self.model_type, index, missing, f"its {found}"))
        return MlpView(layer, f"{self.layers_path}.{index}", spec, self.model_type)

    def attention(self, index: int) -> AttentionView:
        """The attention of one layer.

        Raises:
            UnsupportedModelError: this layer has none (a hybrid's linear attention).
        """
        spec = self.architecture.attention
        layer = self.layers[index]
        if spec is None or not _has(layer, spec.output):
            looked_for = spec.output if spec else "attention"
            raise UnsupportedModelError(f"{self.model_type}: layer {index} has no {looked_for}")
        config = config_edits.layer_config(self.config, index)
        return AttentionView(layer, f"{self.layers_path}.{index}", spec, self.model_type, config)

    def experts(self, index: int) -> ExpertsView:
        """The experts of one layer.

        Raises:
            UnsupportedModelError: the family's can't be removed, or this layer has none.
        """
        spec = refusals.check_experts(self.architecture)
        layer = self.layers[index]
        if not (_has(layer, spec.experts) and _has(layer, spec.router)):
            raise UnsupportedModelError(f"{self.model_type}: layer {index} has no experts")
        return ExpertsView(layer, f"{self.layers_path}.{index}", spec, self.model_type)

    def expert_layers(self) -> list[int]:
        """The layers that have experts.

        Raises:
            UnsupportedModelError: the family's can't be removed, or no layer has any.
        """
        spec = refusals.check_experts(self.architecture)
        found = [index for index, layer in enumerate(self.layers) if _has(layer, spec.experts)]
        if not found:
            raise UnsupportedModelError(refusals.no_expert_layers(self.model_type))
        return found

    @property
    def routing(self) -> Routing:
        """How tokens choose among the experts; raises ``UnsupportedModelError`` if the config doesn't say."""
        names = ("num_experts_per_tok", "n_group", "topk_group")
        said = {name: getattr(self.config, name, None) for name in names}
        experts = self.experts(self.expert_layers()[0]).num_experts
        found = stated_routing({**said, "num_experts": experts}, self.architecture)
        if found is None:
            raise UnsupportedModelError(f"{self.model_type}: its config states no num_experts_per_tok")
        return found

    def component(self, index: int, kind: ComponentKind) -> nn.Module | None:
        """The module whose output is ``kind`` in layer ``index``, for hooks; None if the layer has none.

        Fused GLUs have no module that outputs gate or up alone, plain MLPs no gate. ``attention_output``
        modules may return a tuple whose first item is the output.
        """
        layer = self.layers[index]
        for path in self._component_paths(kind):
            if path is not None and _has(layer, path):
                return layer.get_submodule(path)
        return None

    def _component_paths(self, kind: ComponentKind) -> tuple[str | None, ...]:
        mlp, attention = self.architecture.mlp, self.architecture.attention
        if kind == "input_norm":
            return self.architecture.input_norms
        if kind == "attention_output":
            return (attention.module, *attention.other_modules) if attention else ()
        if mlp is None or kind not in _MLP_COMPONENTS:
            return ()
        separate = mlp.kind != "fused_glu"
        paths = {
            "gate_proj": mlp.gate if separate else None,
            "up_proj": mlp.up if separate else None,
            "down_proj": mlp.down,
            "mlp_output": mlp.module or mlp.down,
        }
        return (paths[kind],)

    def check_depth(self, indices: Iterable[int]) -> tuple[int, ...]:
        """The layers to remove, sorted; raises, before anything is touched, if that can't be done.

        Raises:
            UnsupportedModelError: the family's layers depend on their number in a way no config expresses.
            ValueError: no such layer, a repeated one, or none would be left.
        """
        return refusals.check_depth(
            self.architecture, lambda name: getattr(self.config, name, None), self.num_layers, indices
        )

    def remove_layers(self, indices: Iterable[int]) -> None:
        """Remove these layers in place, with ``layer_idx`` at every depth and every per-layer config list."""
        gone = set(self.check_depth(indices))
        kept = [i for i in range(self.num_layers) if i not in gone]
        old = self.layers
        dense = [i for i in kept if not self._is_sparse(old[i])]
        for path in self.stack.first_layer_only:
            _move_module(old[0], old[kept[0]], path)
        layers = nn.ModuleList([old[i] for i in kept])
        parent, _, name = self.layers_path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, layers)
        for number, layer in enumerate(layers):
            _renumber(layer, number)
        for config, attribute in self._configs():
            config_edits.keep_layers(config, self.architecture.layer_lists, attribute, kept, dense)

    def _is_sparse(self, layer: nn.Module) -> bool:
        mlp = self.architecture.mlp
        return mlp is not None and not _has(layer, mlp.up)

    def _configs(self) -> list[tuple[PreTrainedConfig, str]]:
        """(config, name of its layer count): the root's text config and the stack's own, if another object.

        T5's stacks hold copies of the config in which their own length is always the first stack's name.
        """
        found = [(self.config, self.stack.num_layers_attribute)]
        parent, _, _ = self.layers_path.rpartition(".")
        while True:
            config = getattr(self.model.get_submodule(parent), "config", None)
            text = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
            if text is not None and all(text is not other for other, _ in found):
                found.append((text, self.architecture.stacks[0].num_layers_attribute))
            if not parent:
                return found
            parent, _, _ = parent.rpartition(".")

    def write_sizes_to_config(self) -> None:
        """Make the config say what the modules are: one number if layers agree, else ``per_layer_config``.

        ``per_layer_config`` is transformers' own: a plain load of a family whose code reads one number then
        raises, ``load_pruned`` reads it.
        """
        sizes = self.layer_sizes()
        for config, _ in self._configs():
            config_edits.write_sizes(config, sizes)
        experts = self.architecture.experts
        if experts is not None and sizes.get(experts.count_attribute):
            self._note_experts(next(iter(sizes[experts.count_attribute].values())))

    def _note_experts(self, count: int) -> None:
        """Tell the model itself, which balances the load of its experts where it is trained."""
        if isinstance(self.model.__dict__.get("num_experts"), int):
            self.model.__dict__["num_experts"] = count

    def layer_sizes(self) -> dict[str, dict[int, int]]:
        """Config attribute -> layer -> size, for the layers whose MLP or heads can be narrowed."""
        sizes: dict[str, dict[int, int]] = {}
        for index in range(self.num_layers):
            for name, value in self._sizes_of(index).items():
                sizes.setdefault(name, {})[index] = value
        return sizes

    def _sizes_of(self, index: int) -> dict[str, int]:
        sizes: dict[str, int] = {}
        mlp, attention = self.architecture.mlp, self.architecture.attention
        if mlp and not self.architecture.width_refused and _has(self.layers[index], mlp.down):
            sizes[mlp.size_attribute or UNSAID_SIZE] = self.mlp(index).intermediate_size
        experts = self.architecture.experts
        if experts and _has(self.layers[index], experts.experts):
            sizes[experts.count_attribute] = self.experts(index).num_experts
        if attention and attention.heads_refused is None and _has(self.layers[index], attention.output):
            view = self.attention(index)
            sizes["num_attention_heads"] = view.num_heads
            sizes["num_key_value_heads"] = view.num_key_value_heads
            if view.num_heads * view.head_dim != self.hidden_size:
                # many families derive it from the other two where it isn't stated
                sizes["head_dim"] = view.head_dim
        return sizes


def locate(model: PreTrainedModel, layers_path: str | None = None) -> ModelView:
    """Find the layers of ``model``.

    With ``layers_path`` a family that is not in the registry is accepted too: then only what needs no
    knowledge of a layer's inside (layer importance) works on it.

    Raises:
        UnsupportedModelError: unknown family, or its layers are not where they should be.
    """
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise UnsupportedModelError(f"a transformers model is needed, got {type(model).__name__}")
    model_type = model.config.get_text_config().model_type
    _check_not_refused(model_type)
    if layers_path is not None:
        return _locate_at(model, model_type, layers_path)
    architecture = find_architecture(model_type)
    tried = []
    for stack in architecture.stacks:
        for tower in _towers(model):
            path = f"{tower}{stack.path}"
            if _has_layers(model, path):
                return ModelView(model, architecture, stack, path)
            tried.append(path)
    looked_for = ", ".join(dict.fromkeys(tried))
    raise UnsupportedModelError(f"{model_type}: no layers in {type(model).__name__}; looked for {looked_for}")


def _check_not_refused(model_type: str) -> None:
    entry = ARCHITECTURES.get(model_type)
    if entry is not None and entry.refused:
        raise UnsupportedModelError(f"model family {model_type!r} is not supported: {entry.refused}")


def _locate_at(model: PreTrainedModel, model_type: str, layers_path: str) -> ModelView:
    if not _has_layers(model, layers_path):
        raise UnsupportedModelError(f"{model_type}: {layers_path!r} is not a list of layers of the model")
    try:
        architecture = find_architecture(model_type)
    except UnsupportedModelError:
        reason = f"model family {model_type!r} is not known"
        stack = StackSpec(layers_path)
        unknown = Architecture(model_type, (stack,), None, None, width_refused=reason, depth_refused=reason)
        return ModelView(model, unknown, stack, layers_path)
    for stack in architecture.stacks:
        if re.search(rf"(^|\.){re.escape(stack.path)}$", layers_path):
            return ModelView(model, architecture, stack, layers_path)
    return ModelView(model, architecture, architecture.stacks[0], layers_path)


def _towers(model: PreTrainedModel) -> tuple[str, ...]:
    prefix = model.base_model_prefix
    return (*TEXT_TOWERS, f"{prefix}.") if prefix else TEXT_TOWERS


def _has_layers(model: nn.Module, path: str) -> bool:
    return _has(model, path) and isinstance(model.get_submodule(path), nn.ModuleList)


def _has(module: nn.Module, path: str) -> bool:
    current: Any = module
    for name in path.split("."):
        modules = getattr(current, "_modules", {})
        if modules.get(name) is None:
            return False
        current = modules[name]
    return True


def _renumber(layer: nn.Module, number: int) -> None:
    """Tell the layer and everything in it its new number (the cache is addressed by it)."""
    for module in layer.modules():
        for name in _LAYER_NUMBERS:
            if isinstance(module.__dict__.get(name), int):
                setattr(module, name, number)


def _move_module(source: nn.Module, target: nn.Module, path: str) -> None:
    """Move what only a first layer owns (T5's relative position bias) to the new first layer."""
    parent, _, name = path.rpartition(".")
    if source is target or not _has(source, path):
        return
    setattr(target.get_submodule(parent), name, source.get_submodule(path))
    setattr(target.get_submodule(parent), f"has_{name}", True)
