"""Reconstruction: each pruned MLP alone is trained towards what the dense one gives for the same inputs.

Gate, up and down are fitted together, which no closed form does, from the refitted weights on: block-wise
distillation as of Puzzle (Bercovich et al. 2024, arXiv:2411.19146) and of arXiv:2510.14444. The loss is
mean ‖error‖² / mean ‖dense output‖² over tokens. A layer is the model's own in between, so it works out of
core, too: calibration goes through the dense layers one by one, and only one of them is trained at a time.
Samples that are held out decide: a layer keeps what was trained only if its error on them fell.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from optipfair_engine.calibration.runner import HOLDOUT_EVERY, TokenSelection, eval_mode, first_tensor
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.plans.apply import narrowed_layer
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer
from optipfair_engine.solving.refit import choose_ridge, refit
from optipfair_engine.streaming.layerwise.calls import step
from optipfair_engine.streaming.layerwise.run import token_selections

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.statistics import GramStatistics
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.plans.provenance import Provenance

#: Highest learning rate of a model of ``RATED_HIDDEN_SIZE``; 1e-4 and 3e-4 barely moved it (measured).
LEARNING_RATE: Final = 2e-3
RATED_HIDDEN_SIZE: Final = 576

#: Tokens in a step, and how often all tokens are seen at most: few of them are soon learnt by heart.
TOKENS_A_STEP: Final = 256
PASSES: Final = 2

#: A layer whose refit errs by less than this is left alone: at this rate it would get worse (measured).
SMALL_ERROR: Final = 1e-3

#: How often in a layer's time the held-out error is looked at: the best weights so far are kept.
_LOOKS: Final = 4
_WARM_UP: Final = 5
_BETAS: Final = (0.9, 0.98)


@dataclass(frozen=True)
class LayerFit:
    """What was found for one layer: held-out errors before and after, and its weights if they fell."""

    before: float
    after: float
    weights: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Tokens:
    """Inputs and dense outputs ``[tokens, hidden]`` of an MLP, float32: to fit on, and held out."""

    fit: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]


def reconstruct(
    view: ModelView,
    plan: PruningPlan,
    statistics: GramStatistics,
    calibration: CalibrationSet,
    *,
    max_seconds: float,
    seed: int = 0,
    gatherer: Gatherer = IN_MEMORY,
    report: Reporter = null_reporter,
    clock: Callable[[], float] = time.monotonic,
) -> PruningPlan:
    """The plan with trained gate, up and down weights in the layers that are better for it.

    Training starts from a refit that has not seen the held-out samples either. The time is divided equally
    among the layers that are still to come.

    Args:
        view: of the dense model, in memory or mapped from its files.
        plan: what stays, refitted.
        statistics: that the plan was made from.
        calibration: the same samples.
        max_seconds: for all layers together, forward passes included.
        seed: of the order of the tokens.
        gatherer: where weights lie until the plan is applied.
        report: progress, stage "reconstruct", one step a layer.
        clock: what ``max_seconds`` is measured by.

    Raises:
        CalibrationError: too few samples to hold any out.
        UnsupportedModelError: the family's layers can't be run one by one, or have no MLP module.
    """
    if calibration.num_samples < HOLDOUT_EVERY:
        raise CalibrationError(
            f"reconstruction is judged on every {HOLDOUT_EVERY}th calibration sample, and there are only "
            f"{calibration.num_samples}"
        )
    if view.config.is_encoder_decoder or len(view.architecture.stacks) > 1:
        raise UnsupportedModelError(f"{view.model_type}: only decoders are reconstructed layer by layer")
    layers = sorted(plan.kept_neurons)
    for layer in layers:
        _check_module(view, layer)
    deadline = clock() + max_seconds
    fits: dict[int, LayerFit] = {}
    weights = dict(plan.weights)
    passing = _Passing(view, calibration)
    for index in range(max(layers, default=-1) + 1):
        tokens = passing.step(index, watched=index in layers)
        left = [layer for layer in layers if layer >= index]
        if tokens is not None:
            module = _narrow_mlp(view, plan, statistics, index)
            found = _fit(view, index, module, tokens, (deadline - clock()) / len(left), seed, clock)
            weights |= {name: gatherer.hold(weight) for name, weight in (found.weights or {}).items()}
            fits[index] = replace(found, weights=None)
        report("reconstruct", index + 1, layers[-1] + 1, _said(index, fits.get(index)))
        if clock() >= deadline:
            break
    return replace(plan, weights=weights, provenance=_stated(plan, fits))


def _said(layer: int, found: LayerFit | None) -> str:
    if found is None:
        return f"layer {layer}: whole"
    return f"layer {layer}: held-out error {found.before:.4g} before, {found.after:.4g} after"


def _check_module(view: ModelView, layer: int) -> None:
    if view.mlp(layer).module is view.layers[layer]:
        raise UnsupportedModelError(
            f"{view.model_type}: its MLP is no module of its own, so it can't be reconstructed"
        )


def _stated(plan: PruningPlan, fits: Mapping[int, LayerFit]) -> Provenance:
    """The plan's provenance with what all layers gave that were tried."""
    return replace(
        plan.provenance,
        reconstructed_layers=tuple(layer for layer, found in fits.items() if found.after < found.before),
        reconstruction_errors={
            layer: (_short(found.before), _short(found.after)) for layer, found in fits.items()
        },
    )


def _short(error: float) -> float:
    return float(f"{error:.6g}")


class _Passing:
    """Calibration on its way through the dense layers; of a watched one, what enters and leaves its MLP."""

    def __init__(self, view: ModelView, calibration: CalibrationSet) -> None:
        device = next(view.model.parameters()).device
        self._view = view
        self._batches = [{key: value.to(device) for key, value in b.items()} for b in calibration.batches]
        self._selections = token_selections(self._batches, HOLDOUT_EVERY)
        self._hidden: list[Tensor] = []

    def step(self, index: int, *, watched: bool) -> Tokens | None:
        """Take every batch through one layer."""
        caught: list[tuple[Tensor, Tensor]] = []
        module = self._view.mlp(index).module if watched else None
        handle = None if module is None else module.register_forward_hook(_catch(caught), with_kwargs=True)
        try:
            with eval_mode(self._view.model), torch.no_grad(), fast_products(self._view.model):
                for number, batch in enumerate(self._batches):
                    step(self._view, index, batch, self._hidden, number)
        finally:
            if handle is not None:
                handle.remove()
        return None if module is None else _tokens(self._selections, caught)


def _catch(caught: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    """A forward hook that notes a module's input and output."""

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        caught.append((first_tensor(args, kwargs).detach(), _states(output).detach()))

    return note


def _states(output: Any) -> Tensor:
    """The states among what an MLP returns."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _tokens(selections: Sequence[TokenSelection], caught: list[tuple[Tensor, Tensor]]) -> Tokens:
    """The unmasked tokens of all batches, those of held-out samples apart; empties ``caught``."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"fit": [], "held": []}
    for selection, pair in zip(selections, caught, strict=True):
        for name, some in parts.items():
            rows = getattr(selection, name)
            if len(rows):
                x, y = (selection.take(value, rows).float() for value in pair)
                some.append((x, y))
    caught.clear()
    if not all(parts.values()):
        raise CalibrationError("reconstruction needs tokens to fit on and held-out ones; some are missing")
    return Tokens(_joined(parts["fit"]), _joined(parts["held"]))


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, outputs = zip(*pairs, strict=True)
    return torch.cat(inputs), torch.cat(outputs)


def _narrow_mlp(view: ModelView, plan: PruningPlan, statistics: GramStatistics, layer: int) -> nn.Module:
    """The narrow MLP in float32, refitted without the held-out samples; its projections can be trained."""
    mlp = view.mlp(layer)
    kept = plan.kept_neurons[layer]
    fit, held = statistics.pair(layer)
    dense = mlp.down_weight.detach()
    ridge, _ = choose_ridge(dense, fit, held, kept)
    blind = refit(dense, fit, None, kept, ridge=ridge).weight
    with narrowed_layer(view, plan, layer):
        module = copy.deepcopy(mlp.module)
    module.float().eval().requires_grad_(False)
    names = _names(view, layer)
    down = module.get_parameter(names[mlp.names["down"]])
    with torch.no_grad():
        down.copy_(blind.T if mlp.down_transposed else blind)
    for name in names.values():
        module.get_parameter(name).requires_grad_(True)
    return module


def _names(view: ModelView, layer: int) -> dict[str, str]:
    """State-dict name → name within the MLP module, of gate, up and down (without biases)."""
    mlp = view.mlp(layer)
    inside = {id(parameter): name for name, parameter in mlp.module.named_parameters()}
    owners = {role: mlp.names[role] for role in ("gate", "up", "down") if role in mlp.names}
    return {name: inside[id(view.model.get_parameter(name))] for name in owners.values()}


@dataclass
class _Best:
    """The lowest held-out error so far, and the weights that gave it; none while it is the refit's."""

    error: float
    weights: dict[str, Tensor] | None = None

    def look(self, module: nn.Module, tokens: Tokens) -> None:
        """Compare with the weights that the module has now."""
        found = _error(module, *tokens.held)
        if found < self.error:
            named = module.named_parameters()
            self.error = found
            self.weights = {name: p.detach().clone() for name, p in named if p.requires_grad}


def _fit(
    view: ModelView,
    layer: int,
    module: nn.Module,
    tokens: Tokens,
    seconds: float,
    seed: int,
    clock: Callable[[], float],
) -> LayerFit:
    """Train one layer for so many seconds at most; its best weights, if they beat the refit's."""
    before = _error(module, *tokens.held)
    if not before >= SMALL_ERROR or seconds <= 0:  # NaN, too
        return LayerFit(before, before)
    best = _Best(before)
    rate = LEARNING_RATE * min(1.0, RATED_HIDDEN_SIZE / view.hidden_size)
    _train(module, tokens, best, rate, seconds, seed, clock)
    if best.weights is None:
        return LayerFit(before, before)
    dtypes = {name: view.model.get_parameter(name).dtype for name in _names(view, layer)}
    own = _names(view, layer)
    return LayerFit(before, best.error, {n: best.weights[own[n]].to(t).cpu() for n, t in dtypes.items()})


def _train(
    module: nn.Module,
    tokens: Tokens,
    best: _Best,
    rate: float,
    seconds: float,
    seed: int,
    clock: Callable[[], float],
) -> None:
    """Descend until time or passes are through; ``best`` gets what was found on the way."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=_BETAS, weight_decay=0.0)
    scale, count, start = tokens.fit[1].square().mean(), len(tokens.fit[0]), clock()
    order = [rows for one in range(PASSES) for rows in _order(count, seed + one)]
    looks = 1
    for number, rows in enumerate(order):
        used = max(number / len(order), (clock() - start) / seconds)
        if used >= 1:
            break
        if used >= looks / _LOOKS:
            looks += 1
            best.look(module, tokens)
        _descend(module, tokens, rows, scale, optimizer, rate * _schedule(used, number))
    best.look(module, tokens)


def _order(count: int, seed: int) -> list[Tensor]:
    """All tokens once, some a step."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randperm(count, generator=generator).split(TOKENS_A_STEP))


def _schedule(used: float, step: int) -> float:
    """A short rise, then half a cosine."""
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))


def _descend(
    module: nn.Module,
    tokens: Tokens,
    rows: Tensor,
    scale: Tensor,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> None:
    """One step on some tokens."""
    x, y = (side[rows.to(side.device)] for side in tokens.fit)
    loss = (_states(module(x[None]))[0] - y).square().mean() / scale
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _error(module: nn.Module, inputs: Tensor, outputs: Tensor) -> float:
    """Mean ‖error‖² / mean ‖dense output‖², some tokens at a time."""
    wrong = torch.zeros((), dtype=torch.float64)
    for x, y in zip(inputs.split(4096), outputs.split(4096), strict=True):
        wrong += (_states(module(x[None]))[0] - y).square().sum().double().cpu()
    whole = outputs.square().sum().double().cpu()
    return float(wrong / whole.clamp_min(torch.finfo(torch.float64).tiny))
