"""How a model calls its layers, and one batch through one of them.

How a family calls its layers (masks by layer type, rotary embeddings, positions) is not repeated here: one
pass of the model's own ``forward`` over layers that only write down their arguments tells it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from optipfair_engine.calibration.runner import first_tensor, with_positions
from optipfair_engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.text import Batch


@dataclass(frozen=True)
class _Call:
    """How the model calls its layers for one batch: the first hidden states, and what else each is given."""

    hidden: Tensor
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


def step(view: ModelView, index: int, batch: Batch, hidden: list[Tensor], number: int) -> bool:
    """Take one batch through one layer: its states in ``hidden`` are replaced; whether it gave a tuple."""
    # masks grow with the square of the tokens: they are made again, which is quick, and not kept
    call = _record(view, batch)
    if index == 0:
        hidden.append(call.hidden)
    args, kwargs = call.arguments[index]
    output = view.layers[index](hidden[number], *args, **kwargs)
    hidden[number] = _states_of(view, output, hidden[number])
    return isinstance(output, tuple)


def _states_of(view: ModelView, output: Any, hidden: Tensor) -> Tensor:
    result = output[0] if isinstance(output, tuple) else output
    if not isinstance(result, Tensor) or result.shape != hidden.shape:
        raise UnsupportedModelError(f"{view.model_type}: its layers don't return hidden states alone")
    return result


def _record(view: ModelView, batch: Batch) -> _Call:
    """Run the model's body over layers that pass their input on and write down their other arguments."""
    unseen = set(range(view.num_layers))
    recorders = [_Recorder(layer, index, unseen) for index, layer in enumerate(view.layers)]
    with layers_replaced(view, recorders), suppress(_AllSeen):
        try:
            view.model.base_model(**with_positions(view.model.base_model, batch), use_cache=False)
        except (TypeError, IndexError, AttributeError, ValueError) as error:
            raise UnsupportedModelError(
                f"{view.model_type}: its layers can't be run one by one: {type(error).__name__}: {error}"
            ) from error
    if unseen:
        raise UnsupportedModelError(f"{view.model_type}: its forward doesn't run every layer once")
    hidden = first_tensor((recorders[0].hidden,), {})
    return _Call(hidden, tuple((recorder.args, recorder.kwargs) for recorder in recorders))


class _AllSeen(Exception):  # noqa: N818  # it ends a recording, and is no error
    """Every layer was called: what the model does behind them is of no interest."""


class _Recorder(nn.Module):
    """Stands for a layer: returns its input, and remembers with what else it was called."""

    def __init__(self, layer: nn.Module, index: int, unseen: set[int]) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer
        self._index, self._unseen = index, unseen
        self.hidden: Tensor | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        # some models read attributes of a layer, such as its attention type, before they call it
        return getattr(self.__dict__["_layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Note the call."""
        self.hidden, self.args, self.kwargs = hidden_states, args, kwargs
        self._unseen.discard(self._index)
        if not self._unseen:
            raise _AllSeen
        return hidden_states


@contextmanager
def layers_replaced(view: ModelView, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, the model's body calls these in place of its layers."""
    parent_path, _, name = view.layers_path.rpartition(".")
    parent, original = view.model.get_submodule(parent_path), view.layers
    setattr(parent, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(parent, name, original)
