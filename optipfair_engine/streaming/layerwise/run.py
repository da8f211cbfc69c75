"""Run calibration through a checkpoint layer by layer: every batch through one layer, then the next one.

A weight is read once, however many batches there are, and only the hidden states of the batches stay in
memory. Hidden states are propagated through the *original* layers, so what the accumulators see is what
hooks on the whole model see (``runner.capture_sites``); re-capturing behind pruned layers gave nothing
(measured).

How a family calls its layers (masks by layer type, rotary embeddings, positions) is not repeated here: one
pass of the model's own ``forward`` over layers that only write down their arguments tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optipfair_engine.architectures import locate
from optipfair_engine.calibration.runner import (
    HOLDOUT_EVERY,
    Captured,
    Site,
    TokenSelection,
    check_tokens,
    first_tensor,
    register_site,
    with_positions,
)
from optipfair_engine.calibration.text import Batch, iter_batches
from optipfair_engine.computing.asked import asked_for, note_use
from optipfair_engine.computing.number_type import chosen_dtype, name_of
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.options.words import ComputeDtype
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.streaming.layerwise.model import mapped_model
from optipfair_engine.streaming.layerwise.state import LayerStore, StoredAccumulators, signature
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.source import CheckpointSource

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView

Wanted = Mapping[Site, tuple[Sequence[int], Callable[[], Any]]]


@dataclass(frozen=True)
class _Call:
    """How the model calls its layers for one batch: the first hidden states, and what else each is given."""

    hidden: Tensor
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


def open_checkpoint(source: Path | str) -> ModelView:
    """A view of a checkpoint whose weights stay in their files.

    Raises:
        UnsupportedModelError: not a decoder of known layout, or tensors that loading would rename or convert.
        CheckpointError: unreadable.
    """
    layout = CheckpointLayout(CheckpointSource(Path(source)))
    view = locate(mapped_model(layout))
    if view.config.is_encoder_decoder or len(view.architecture.stacks) > 1:
        raise UnsupportedModelError(f"{view.model_type}: only decoders are run layer by layer")
    return view


def capture_layerwise(
    source: Path | str,
    batches: Iterable[Any],
    wanted: Wanted,
    work: Path,
    *,
    view: ModelView | None = None,
    holdout_every: int | None = HOLDOUT_EVERY,
    report: Reporter = null_reporter,
) -> dict[Site, Captured[Any]]:
    """What ``runner.capture_sites`` gathers, from a checkpoint on disk, in memory for about one layer.

    Args:
        source: a safetensors folder.
        batches: anything that ``iter_batches`` reads.
        wanted: for each site, its layers and what makes an accumulator.
        work: a folder for the state. Given again with the same arguments after a kill, the run goes on
            behind the last finished layer, without a forward of any layer before it.
        view: of ``source``, from :func:`open_checkpoint`, if the caller has it already.
        holdout_every: every n-th sample (counted across batches) feeds ``held`` only; ``None``: nothing.
        report: progress, stage "calibrate", one step a layer.

    Returns:
        As ``capture_sites``, but each accumulator is read from ``work`` when it is asked for.

    Raises:
        CalibrationError: no tokens, or ``work`` belongs to another run.
        UnsupportedModelError: see :func:`open_checkpoint`.
    """
    view = open_checkpoint(source) if view is None else view
    plain = list(iter_batches(batches))
    asked = {site: [list(layers), factory().__class__.__name__] for site, (layers, factory) in wanted.items()}
    run = signature(CheckpointSource(Path(source)), plain, {"wanted": asked, "holdout_every": holdout_every})
    store = LayerStore(work, run)
    compute_dtype = _as_it_began(view, store)
    last = max((max(layers) for layers, _ in wanted.values() if len(layers)), default=-1)
    if store.layers_done <= last:
        for batch in plain:
            check_tokens(view.model, batch["input_ids"])
        with torch.no_grad(), fast_products(view.model, compute_dtype):
            _run_layers(view, plain, _selections(plain, holdout_every), wanted, store, last, report)
    return {
        site: Captured(
            StoredAccumulators(store, f"{site}.fit", layers, factory),  # type: ignore[arg-type]
            StoredAccumulators(store, f"{site}.held", layers, factory),  # type: ignore[arg-type]
        )
        for site, (layers, factory) in wanted.items()
    }


def _as_it_began(view: ModelView, store: LayerStore) -> ComputeDtype:
    """The number type of the states in the work folder, in which the run goes on; else the choice."""
    chosen = name_of(chosen_dtype(view.model))
    store.compute_dtype = began = store.compute_dtype or chosen
    if began != chosen and asked_for() != "auto":
        raise CalibrationError(
            f"the work folder holds states that were computed in {began}, not in {chosen}: "
            "name an empty one, or delete it"
        )
    note_use(began)
    return "float32" if began == "float32" else "checkpoint"


def _run_layers(
    view: ModelView,
    batches: Sequence[Batch],
    selections: Sequence[TokenSelection],
    wanted: Wanted,
    store: LayerStore,
    last: int,
    report: Reporter,
) -> None:
    hidden = store.hidden() if store.layers_done else []
    for index in range(store.layers_done, last + 1):
        gathered = {
            f"{site}.{part}": factory()
            for site, (layers, factory) in wanted.items()
            if index in layers
            for part in ("fit", "held")
        }
        current = TokenSelection()
        with ExitStack() as stack:
            for site, (layers, _) in wanted.items():
                if index in layers:
                    fit, held = gathered[f"{site}.fit"], gathered[f"{site}.held"]
                    stack.callback(register_site(view, index, site, fit, held, current).remove)
            for number, batch in enumerate(batches):
                vars(current).update(vars(selections[number]))
                # masks grow with the square of the tokens: they are made again, which is quick, and not kept
                call = _record(view, batch)
                if index == 0:
                    hidden.append(call.hidden)
                hidden[number] = _forward(view, index, hidden[number], call)
        store.save(index, gathered, hidden if index < last else None)
        report("calibrate", index + 1, last + 1, f"layer {index}")


def _forward(view: ModelView, index: int, hidden: Tensor, call: _Call) -> Tensor:
    args, kwargs = call.arguments[index]
    output = view.layers[index](hidden, *args, **kwargs)
    result = output[0] if isinstance(output, tuple) else output
    if not isinstance(result, Tensor) or result.shape != hidden.shape:
        raise UnsupportedModelError(f"{view.model_type}: its layers don't return hidden states alone")
    return result


def _selections(batches: Sequence[Batch], holdout_every: int | None) -> list[TokenSelection]:
    found, seen = [], 0
    for batch in batches:
        selection = TokenSelection()
        selection.load(batch["attention_mask"], seen, holdout_every)
        seen += len(batch["input_ids"])
        found.append(selection)
    return found


def _record(view: ModelView, batch: Batch) -> _Call:
    """Run the model's body over layers that pass their input on and write down their other arguments."""
    unseen = set(range(view.num_layers))
    recorders = [_Recorder(layer, index, unseen) for index, layer in enumerate(view.layers)]
    with _layers_replaced(view, recorders), suppress(_AllSeen):
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
def _layers_replaced(view: ModelView, layers: Sequence[nn.Module]) -> Iterator[None]:
    parent_path, _, name = view.layers_path.rpartition(".")
    parent, original = view.model.get_submodule(parent_path), view.layers
    setattr(parent, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(parent, name, original)
