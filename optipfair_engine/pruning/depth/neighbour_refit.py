"""The neighbour refit of depth pruning, and the choice of layers by perplexity.

When the layers p+1 … b go, the down projection W of layer p (the last one kept before them) is solved again
so that the residual stream behind p repeats the dense one behind b: with x its inputs and Δ = h_b − h_p, the
least-squares W′ of Δ + W x from x. All its inputs stay, no parameter is added, and the ridge pulls towards W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optipfair_engine.calibration.accumulators import CrossGram, Gram
from optipfair_engine.calibration.runner import HOLDOUT_EVERY, TokenSelection, eval_mode, forward_batches
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.solving.refit import RIDGES, Refit, ridge_diagonal, solve_least_squares

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.text import Batch

#: How far a layer's response to its MLP's output may be from a plain sum before the refit is refused.
_LINEARITY = 0.05


def neighbours(removed: Sequence[int]) -> dict[int, int]:
    """Layer p → b for each run p+1 … b of removed layers; a run at the very start has no layer before it."""
    gone, pairs = set(removed), {}
    for layer in gone:
        if layer + 1 not in gone:
            first = layer
            while first - 1 in gone:
                first -= 1
            if first > 0:
                pairs[first - 1] = layer
    return dict(sorted(pairs.items()))


@dataclass
class _Neighbour:
    """Statistics of one run, and what its hooks hold between each other."""

    gram: Gram = field(default_factory=Gram)
    cross: CrossGram = field(default_factory=CrossGram)
    held_gram: Gram = field(default_factory=Gram)
    held_cross: CrossGram = field(default_factory=CrossGram)
    inputs: Tensor | None = None
    output: Tensor | None = None


def neighbour_refits(
    view: ModelView,
    batches: Sequence[Batch],
    removed: Sequence[int],
    *,
    holdout_every: int | None = HOLDOUT_EVERY,
    report: Reporter = null_reporter,
) -> dict[int, Refit]:
    """Layer p → its refitted down projection, for each run of removed layers, from one forward pass.

    ``error`` is relative to Δ: 1 is what dropping the layers without a refit gives.

    Raises:
        UnsupportedModelError: the family's MLP output isn't added to the residual stream as it is.
    """
    return refits_of_sets(view, batches, [removed], holdout_every=holdout_every, report=report)[0]


def refits_of_sets(
    view: ModelView,
    batches: Sequence[Batch],
    sets: Sequence[Sequence[int]],
    *,
    holdout_every: int | None = HOLDOUT_EVERY,
    report: Reporter = null_reporter,
) -> list[dict[int, Refit]]:
    """:func:`neighbour_refits` for several alternative sets of removed layers, from one forward pass."""
    pairs = sorted({pair for removed in sets for pair in neighbours(removed).items()})
    scale = {p: residual_scale(view, p, batches) for p, _ in pairs}
    state = {pair: _Neighbour() for pair in pairs}
    selection = TokenSelection()
    with ExitStack() as stack:
        for (p, b), found in state.items():
            for remove in _hooks(view, p, b, found, selection):
                stack.callback(remove)
        if pairs:
            for _ in forward_batches(view.model, batches, selection, holdout_every, report=report):
                pass
    solved = {(p, b): _solve(view.mlp(p).down_weight, found, scale[p]) for (p, b), found in state.items()}
    return [{p: solved[p, b] for p, b in neighbours(removed).items()} for removed in sets]


def _hooks(
    view: ModelView, p: int, b: int, state: _Neighbour, selection: TokenSelection
) -> Iterator[Callable[[], None]]:
    def keep_inputs(_module: nn.Module, args: tuple[Any, ...]) -> None:
        state.inputs = args[0].detach()

    def keep_output(_module: nn.Module, _args: Any, output: Any) -> None:
        state.output = main_output(output).detach()

    def feed(_module: nn.Module, _args: Any, output: Any) -> None:
        if state.inputs is None or state.output is None:
            raise UnsupportedModelError(
                "the layers were not run in their order; no neighbour refit is possible"
            )
        after = main_output(output).detach()
        # the layers, and what they saw, may be on several devices
        change = after.float() - state.output.to(after.device).float()
        for rows, cross, gram in (
            (selection.fit, state.cross, state.gram),
            (selection.held, state.held_cross, state.held_gram),
        ):
            x = selection.take(state.inputs, rows)
            cross.update(selection.take(change, rows).to(x.device), x)
            gram.update(x)
        state.inputs = state.output = None

    yield view.mlp(p).down_module.register_forward_pre_hook(keep_inputs).remove
    yield view.layers[p].register_forward_hook(keep_output).remove
    yield view.layers[b].register_forward_hook(feed).remove


def main_output(output: Any) -> Tensor:
    """A layer's hidden states, whether it returns them alone or first in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _solve(weight: Tensor, state: _Neighbour, scale: float) -> Refit:
    """Choose λ on the held-out part (1e-2 without one), then solve with all tokens."""
    w = weight.detach().double().cpu()
    fit, cross = state.gram.result().cpu(), state.cross.result().cpu() / scale
    if state.held_gram.tokens == 0:
        return _final(w, fit, cross, state.cross.target_square / scale**2, RIDGES[2], float("nan"))
    held, held_cross = state.held_gram.result().cpu(), state.held_cross.result().cpu() / scale
    held_square = state.held_cross.target_square / scale**2
    errors = {}
    for ridge in RIDGES:
        solved = _solution(w, fit, cross, ridge)
        errors[ridge] = _delta_error(solved - w, held, held_cross, held_square)
    best = min(errors, key=lambda ridge: errors[ridge])
    square = (state.cross.target_square + state.held_cross.target_square) / scale**2
    return _final(w, fit + held, cross + held_cross, square, best, errors[best])


def _final(w: Tensor, gram: Tensor, cross: Tensor, square: float, ridge: float, held_error: float) -> Refit:
    solved = _solution(w, gram, cross, ridge)
    return Refit(solved.float(), ridge, _delta_error(solved - w, gram, cross, square), held_error)


def _solution(w: Tensor, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    target = cross.double() + w @ gram.double()
    everything = torch.arange(gram.shape[0])
    return solve_least_squares(w, gram, everything, ridge, diagonal=ridge_diagonal(gram), target=target)


def _delta_error(change: Tensor, gram: Tensor, cross: Tensor, square: float) -> float:
    """The share of ‖Δ‖² that (W′ − W)x leaves, from second moments."""
    explained = 2 * (change * cross.double()).sum() - ((change @ gram.double()) * change).sum()
    return max(0.0, 1.0 - float(explained) / max(square, torch.finfo(torch.float64).tiny))


def residual_scale(view: ModelView, layer: int, batches: Sequence[Batch]) -> float:
    """By what factor a layer adds its MLP's output to the residual stream, by experiment.

    Raises:
        CalibrationError: no sample has a token.
        UnsupportedModelError: the output isn't simply added (a norm follows, as in Gemma 2): no down
            projection could stand for other layers.
    """
    generator = torch.Generator().manual_seed(0)
    sample = {"input_ids": _first_tokens(batches)[None]}
    noise: list[Tensor] = []

    def disturb(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        noise.append((torch.randn(output.shape, generator=generator) * size).to(output))
        return output + noise[-1]

    plain = _layer_output(view, layer, sample)
    # as large as the stream: a plain sum stays one at any size, and bf16 rounds it little
    size = float(plain.abs().median())
    handle = view.mlp(layer).down_module.register_forward_hook(disturb)
    try:
        difference = _layer_output(view, layer, sample) - plain
    finally:
        handle.remove()
    added = noise[0].reshape(difference.shape).float()
    scale = float((difference * added).sum() / added.square().sum())
    rest = float((difference - scale * added).norm() / difference.norm().clamp_min(1e-12))
    if abs(scale) < 1e-6 or rest > _LINEARITY:
        raise UnsupportedModelError(
            f"{view.architecture.model_type}: layer {layer} doesn't simply add its MLP's output to the "
            "residual stream, so the neighbour refit isn't possible; use compensation none"
        )
    return 1.0 if abs(scale - 1) < _LINEARITY else scale


def _first_tokens(batches: Sequence[Batch], count: int = 8) -> Tensor:
    """Up to ``count`` tokens of the first sample that has any, without padding, on whichever side it is."""
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            if bool(mask.any()):
                tokens: Tensor = ids[mask.bool()][:count]
                return tokens
    raise CalibrationError("The calibration data has no unmasked token.")


def _layer_output(view: ModelView, layer: int, sample: dict[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []

    def keep(_m: nn.Module, _a: Any, output: Any) -> None:
        seen.append(main_output(output).float())

    handle = view.layers[layer].register_forward_hook(keep)
    try:
        for _ in forward_batches(view.model, [sample], TokenSelection()):
            pass
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def skipped(view: ModelView, layers: Iterable[int]) -> Iterator[None]:
    """Let these layers pass their input on unchanged inside the block (they still run)."""

    def skip(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(view.layers[layer].register_forward_hook(skip, with_kwargs=True).remove)
        yield


def greedy_perplexity_layers(
    view: ModelView,
    count: int,
    loss: Callable[[], float],
    *,
    candidates: Sequence[int] | None = None,
    report: Reporter = null_reporter,
) -> tuple[int, ...]:
    """SLEB (arXiv:2402.09025): remove, ``count`` times, the layer without which ``loss()`` is lowest.

    Args:
        view: the located model.
        count: layers to remove.
        loss: scores the model as it is (perplexity or mean loss over some windows).
        candidates: layers that may go; all unless given.
        report: progress, stage "select", one step a scored candidate.
    """
    options = list(range(view.num_layers) if candidates is None else candidates)
    total = sum(len(options) - i for i in range(count))
    gone: list[int] = []
    done = 0
    with eval_mode(view.model):
        for _ in range(count):
            scores = {}
            for layer in [i for i in options if i not in gone]:
                with skipped(view, [*gone, layer]):
                    scores[layer] = loss()
                done += 1
                report("select", done, total, f"without layers {sorted([*gone, layer])}")
            gone.append(min(scores, key=lambda layer: (scores[layer], layer)))
    return tuple(sorted(gone))
