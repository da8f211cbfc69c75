"""What can be exchanged between two prompts: neurons, heads, and what each layer's two halves write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.components import NEURONS, Site, find_sites
from optipfair_engine.bias.activations.keys import layer_key, split_key
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.options.words import Patching

#: Key of the heads' own outputs: the input of the output projection.
HEADS = "o_proj_input"
_HALVES = ("attention_output", "mlp_output")


@dataclass(frozen=True)
class Group:
    """The units of one module: ``count`` of them, ``size`` features each, side by side.

    ``output_norms [count]``: how strongly each neuron is written to the residual stream.
    """

    component: str
    layer: int
    site: Site
    count: int
    size: int
    output_norms: Tensor | None = None

    def part(self, index: int) -> slice:
        """The features of one unit."""
        return slice(index * self.size, (index + 1) * self.size)


def groups_of(view: ModelView, kind: Patching) -> list[Group]:
    """Every unit of a kind, module by module, in the order of layers.

    Raises:
        UnsupportedModelError: the model has none that could be told apart.
    """
    if kind == "heads":
        return _heads(view)
    groups = []
    for site in find_sites(view, (NEURONS,) if kind == "neurons" else _HALVES):
        component, layer = split_key(site.key) or (site.key, 0)
        if kind == "layers":
            groups.append(Group(component.removesuffix("_output"), layer, site, 1, view.hidden_size))
        else:
            norms = view.mlp(layer).down_weight.detach().float().norm(dim=0)
            groups.append(Group("neuron", layer, site, len(norms), 1, norms))
    return groups


def _heads(view: ModelView) -> list[Group]:
    groups = []
    for layer in range(view.num_layers):
        try:
            attention = view.attention(layer)
        except UnsupportedModelError:
            continue  # a hybrid's linear attention: other layers may have heads
        site = Site(layer_key(HEADS, layer), attention.o_module, is_input=True)
        groups.append(Group("head", layer, site, attention.num_heads, attention.head_dim))
    if not groups:
        raise UnsupportedModelError(f"{view.model_type}: no layer has attention heads that could be patched")
    return groups


Change = Callable[[Tensor], Tensor]


@contextmanager
def changed(site: Site, change: Change) -> Iterator[None]:
    """Let what stands at a site be what ``change`` makes of it, in forward passes inside the block."""
    handle = _before(site, change) if site.is_input else _behind(site, change)
    try:
        yield
    finally:
        handle.remove()


def _before(site: Site, change: Change) -> Any:
    def give(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return site.module.register_forward_pre_hook(give, with_kwargs=True)


def _behind(site: Site, change: Change) -> Any:
    def give(_module: Any, _args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return site.module.register_forward_hook(give)
