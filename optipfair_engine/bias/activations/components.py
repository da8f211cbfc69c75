"""Where activations are taken: layer keys such as ``mlp_output_layer_3``, and the modules behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, get_args

from torch import Tensor, nn

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.keys import layer_key
from optipfair_engine.bias.defaults import LayerType
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError

LAYER_TYPES: Final[tuple[str, ...]] = get_args(LayerType)
#: The MLP's neurons themselves (the input of ``down_proj``): only on request, as it isn't in the guide's
#: list.
NEURONS: Final = "down_proj_input"
TARGETS: Final[tuple[str, ...]] = (*LAYER_TYPES, NEURONS)
#: What leaves a whole layer: the residual stream. Not in the guide's list either.
LAYER_OUTPUT: Final = "layer_output"

Select = Callable[[Tensor], Tensor]
Consumer = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Site:
    """One place of one layer: whose output (or input) it is, and which part of that tensor."""

    key: str
    module: nn.Module
    is_input: bool = False
    part: slice | None = None

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """The activations ``[batch, tokens, features]`` of a call of the module."""
        value = (args[0] if args else kwargs["hidden_states"]) if self.is_input else output
        tensor: Tensor = value[0] if isinstance(value, tuple) else value
        return tensor if self.part is None else tensor[..., self.part]


def check_targets(targets: Iterable[str] | None) -> tuple[str, ...]:
    """The components to capture; None means all of the guide's six.

    Raises:
        InvalidOptionError: an unknown name.
    """
    if targets is None:
        return LAYER_TYPES
    named = tuple("attention_output" if name == "attention" else name for name in targets)
    unknown = sorted(set(named) - set(TARGETS))
    if unknown:
        raise InvalidOptionError(f"Unknown layer types {unknown}; there are {', '.join(TARGETS)}")
    return named


def find_sites(view: ModelView, targets: Sequence[str], layers: Iterable[int] | None = None) -> list[Site]:
    """All places of these components in the model, layer by layer; a family without one (no gate) has fewer.

    Raises:
        UnsupportedModelError: none at all.
    """
    numbers = range(view.num_layers) if layers is None else layers
    found = [site for layer in numbers for kind in targets if (site := _site(view, layer, kind)) is not None]
    if not found:
        raise UnsupportedModelError(
            f"{view.model_type}: none of {', '.join(targets)} was found in its layers ({view.layers_path})"
        )
    return found


def last_output(view: ModelView) -> Site:
    """Where the last layer's output is read: the one place that means the same in models of any depth."""
    last = view.num_layers - 1
    return Site(layer_key(LAYER_OUTPUT, last), view.layers[last])


def _site(view: ModelView, layer: int, kind: str) -> Site | None:
    key = layer_key(kind, layer)
    if kind == NEURONS:
        module = _module(view, layer, "down_proj")
        return Site(key, module, is_input=True) if module is not None else None
    module = _module(view, layer, kind)
    if module is not None:
        return Site(key, module)
    return _fused_site(view, layer, kind)


def _module(view: ModelView, layer: int, kind: str) -> nn.Module | None:
    module = view.component(layer, kind)  # type: ignore[arg-type]
    return module if module is not None else _feed_forward(view.layers[layer]).get(kind)


def _fused_site(view: ModelView, layer: int, kind: str) -> Site | None:
    """Gate and up of a fused projection are the two halves of its output."""
    if kind not in ("gate_proj", "up_proj") or view.architecture.width_refused is not None:
        return None
    if view.architecture.mlp is None or view.architecture.mlp.kind != "fused_glu":
        return None
    mlp = view.mlp(layer)
    size = mlp.intermediate_size
    part = slice(0, size) if kind == "gate_proj" else slice(size, 2 * size)
    return Site(layer_key(kind, layer), mlp.up_module, part=part)


def _feed_forward(layer: nn.Module) -> dict[str, nn.Module]:
    """The MLP of layers that the registry describes without one (T5: ``wi``/``wi_0, wi_1`` and ``wo``)."""
    for module in layer.modules():
        children = dict(module.named_children())
        if "wo" not in children:
            continue
        roles = {"gate_proj": "wi_0", "up_proj": "wi_1"} if "wi_0" in children else {"up_proj": "wi"}
        found = {kind: children[name] for kind, name in roles.items() if name in children}
        return {**found, "down_proj": children["wo"], "mlp_output": module}
    return {}


@contextmanager
def hooked(sites: Iterable[Site], consume: Consumer) -> Iterator[None]:
    """Give every site's activations to ``consume(key, tensor)`` during forward passes inside the block."""
    with ExitStack() as stack:
        # where both are one module (BERT) its hooks run in this order: down_proj first, as everywhere else
        for site in sorted(sites, key=lambda site: site.key.startswith("mlp_output")):
            handle = site.module.register_forward_hook(_hook(site, consume), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _hook(site: Site, consume: Consumer) -> Callable[..., None]:
    def give(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        consume(site.key, site.read(args, kwargs, output).detach())

    return give
