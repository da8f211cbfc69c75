"""Run calibration through a checkpoint layer by layer: every batch through one layer, then the next one.

A weight is read once, however many batches there are, and only the hidden states of the batches stay in
memory. Hidden states are propagated through the *original* layers, so what the accumulators see is what
hooks on the whole model see (``runner.capture_sites``); re-capturing behind pruned layers gave nothing
(measured).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.architectures import locate
from optipfair_engine.calibration.runner import (
    HOLDOUT_EVERY,
    Captured,
    Site,
    TokenSelection,
    check_tokens,
    register_site,
)
from optipfair_engine.calibration.share import ALONE, Share
from optipfair_engine.calibration.text import Batch, iter_batches
from optipfair_engine.computing.asked import asked_for, note_use
from optipfair_engine.computing.number_type import chosen_dtype, name_of
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.options.words import ComputeDtype
from optipfair_engine.progress import Announcer, Reporter, null_announcer, null_reporter
from optipfair_engine.streaming.layerwise.calls import step
from optipfair_engine.streaming.layerwise.evaluation import Evaluation, loss_behind_layers
from optipfair_engine.streaming.layerwise.model import mapped_model
from optipfair_engine.streaming.layerwise.state import LayerStore, StoredAccumulators, signature
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.source import CheckpointSource

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView

Wanted = Mapping[Site, tuple[Sequence[int], Callable[[], Any]]]


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
    beside: Evaluation | None = None,
    discard: bool = False,
    share: Share = ALONE,
    report: Reporter = null_reporter,
    announce: Announcer = null_announcer,
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
        beside: windows that go through the same layers, and whose loss is then known.
        discard: whether the state of another run in ``work`` is removed, and not an error.
        share: the batches and windows that this process runs, if others with the same ``work`` run the rest.
        report: progress, stage "calibrate", one step a layer.
        announce: told ``resumed`` with the first layer that is computed again, if there is a state.

    Returns:
        As ``capture_sites``, but each accumulator is read from ``work`` when it is asked for.

    Raises:
        CalibrationError: no tokens, or ``work`` belongs to another run.
        UnsupportedModelError: see :func:`open_checkpoint`.
    """
    view = open_checkpoint(source) if view is None else view
    plain, windows = list(iter_batches(batches)), [] if beside is None else beside.batches
    asked = {site: [list(layers), factory().__class__.__name__] for site, (layers, factory) in wanted.items()}
    asked_for_all = {"wanted": asked, "holdout_every": holdout_every, "windows": len(windows)}
    if share.size > 1:  # hidden states are kept by each process
        asked_for_all["processes"] = share.size
    run = signature(CheckpointSource(Path(source)), [*plain, *windows], asked_for_all)
    store = LayerStore(work, run, discard=discard, share=share)
    if store.layers_done:
        announce("resumed", {"layer": store.layers_done})
    compute_dtype = _as_it_began(view, store, share)
    last = max((max(layers) for layers, _ in wanted.values() if len(layers)), default=-1)
    last = view.num_layers - 1 if windows else last
    if store.layers_done <= last:
        for batch in (*plain, *windows):
            check_tokens(view.model, batch["input_ids"])
        with torch.no_grad(), fast_products(view.model, compute_dtype):
            selections = share.of(token_selections(plain, holdout_every))
            _run_layers(
                view,
                share.of(plain),
                share.of(windows),
                selections,
                wanted,
                store,
                last,
                keep_last=bool(windows),
                report=report,
            )
    if beside is not None:
        beside.mean_loss = _evaluated(view, share.of(windows), store, compute_dtype, share)
    return {
        site: Captured(
            StoredAccumulators(store, f"{site}.fit", layers, factory),  # type: ignore[arg-type]
            StoredAccumulators(store, f"{site}.held", layers, factory),  # type: ignore[arg-type]
        )
        for site, (layers, factory) in wanted.items()
    }


def _evaluated(
    view: ModelView,
    windows: Sequence[Batch],
    store: LayerStore,
    compute_dtype: ComputeDtype,
    share: Share,
) -> float:
    """The mean loss of windows whose states behind the last layer are kept; at once, if it was computed.

    ``windows`` are those of this process; the loss is that of all.
    """
    known = share.agree(store.evaluation())
    if known is None:
        states = store.hidden()
        with torch.no_grad(), fast_products(view.model, compute_dtype):
            behind = states[len(states) - len(windows) :]
            loss, tokens = share.total(loss_behind_layers(view, windows, behind, store.returns_tuple))
        known = loss / tokens
        store.save_evaluation(known)
    return known


def _as_it_began(view: ModelView, store: LayerStore, share: Share) -> ComputeDtype:
    """The number type of the states in the work folder, in which the run goes on; else the choice."""
    chosen = share.agree(name_of(chosen_dtype(view.model)))  # found by a trial, which could end in two ways
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
    windows: Sequence[Batch],
    selections: Sequence[TokenSelection],
    wanted: Wanted,
    store: LayerStore,
    last: int,
    *,
    keep_last: bool,
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
                store.returns_tuple = step(view, index, batch, hidden, number)
        for number, batch in enumerate(windows, len(batches)):
            step(view, index, batch, hidden, number)  # no accumulator sees them
        store.save(index, gathered, hidden if index < last or keep_last else None)
        report("calibrate", index + 1, last + 1, f"layer {index}")


def token_selections(batches: Sequence[Batch], holdout_every: int | None) -> list[TokenSelection]:
    """For each batch which of its tokens are used, and which are of samples that are held out."""
    found, seen = [], 0
    for batch in batches:
        selection = TokenSelection()
        selection.load(batch["attention_mask"], seen, holdout_every)
        seen += len(batch["input_ids"])
        found.append(selection)
    return found
