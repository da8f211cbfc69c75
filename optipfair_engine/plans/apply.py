"""Applying a plan to a model in memory: to a copy, or in place where that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from optipfair_engine.errors import PlanError
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.plans.plan import PruningPlan

M = TypeVar("M", bound="PreTrainedModel")


def apply_plan(
    model: M,
    plan: PruningPlan,
    *,
    inplace: bool = False,
    layers_path: str | None = None,
    report: Reporter = null_reporter,
) -> M:
    """Shrink a model as a plan says.

    Args:
        model: a transformers model of the plan's family and sizes.
        plan: what stays; validated against the model before anything is touched.
        inplace: change ``model`` itself; otherwise it stays as it is, and the result shares no storage with
            it.
        layers_path: where the layers are, for a model with several stacks (T5: ``"decoder.block"``).
        report: progress, stage "prune", one step a layer.

    Returns:
        The shrunk model: same dtype, devices, train/eval mode and ``requires_grad``; its config describes it.

    Raises:
        PlanError: the plan doesn't fit the model.
        UnsupportedModelError: the family can't be changed that way.
    """
    from optipfair_engine.architectures import locate  # brings transformers, which static plans need not

    view = locate(model, layers_path)
    plan.validate(view)
    if plan.removed_layers:
        view.check_depth(plan.removed_layers)
    _check_weights(view, plan)
    target = model if inplace else _copy_of_the_rest(model, view, plan)
    with torch.no_grad():
        _shrink(locate(target, view.layers_path), plan, report)
    return target


@contextmanager
def narrowed_in_passing(view: ModelView, plan: PruningPlan) -> Iterator[None]:
    """Inside the block each layer has the plan's neurons alone while it runs, and all again behind it.

    A pruned model can so be tried without a copy: only one layer's narrow weights are there at a time, even
    where the model's own are mapped from files. Layers and heads that a plan removes are not looked at.
    """
    with ExitStack() as hooks:
        for layer in plan.kept_neurons:
            passing = _Passing(view, plan, layer)
            module = view.layers[layer]
            hooks.callback(module.register_forward_pre_hook(passing.narrow).remove)
            hooks.callback(module.register_forward_hook(passing.widen, always_call=True).remove)
        yield


@contextmanager
def narrowed_layer(view: ModelView, plan: PruningPlan, layer: int) -> Iterator[None]:
    """Inside the block one layer has the plan's neurons alone."""
    passing = _Passing(view, plan, layer)
    passing.narrow(view.layers[layer], ())
    try:
        yield
    finally:
        passing.widen()


class _Passing:
    """One layer's weights, narrow from the start of its forward to its end."""

    def __init__(self, view: ModelView, plan: PruningPlan, layer: int) -> None:
        self._view, self._layer = view, layer
        self._kept = torch.tensor(plan.kept_neurons[layer])
        names = set(view.mlp(layer).names.values())
        self._weights = {name: weight for name, weight in plan.weights.items() if name in names}
        self._wide: list[tuple[nn.Module, dict[str, Any]]] = []

    def narrow(self, layer: nn.Module, _arguments: object) -> None:
        """Before the forward."""
        modules = layer.modules()
        self._wide = [(m, {**vars(m), "_parameters": dict(m._parameters)}) for m in modules]
        self._view.mlp(self._layer).keep(self._kept)
        for name, weight in self._weights.items():
            _set_parameter(self._view.model, name, weight)

    def widen(self, *_: object) -> None:
        """Behind it, whether it failed or not."""
        for module, state in self._wide:
            vars(module).update(state)
        self._wide = []


def _shrink(view: ModelView, plan: PruningPlan, report: Reporter) -> None:
    total = view.num_layers
    for layer in range(total):
        if layer in plan.removed_layers:
            report("prune", layer + 1, total, f"layer {layer} goes")
            continue
        if layer in plan.kept_neurons:
            view.mlp(layer).keep(torch.tensor(plan.kept_neurons[layer]))
        if layer in plan.kept_experts:
            view.experts(layer).keep(torch.tensor(plan.kept_experts[layer]))
        if layer in plan.kept_heads:
            heads = plan.kept_heads[layer]
            view.attention(layer).keep_heads(torch.tensor(heads.query), torch.tensor(heads.kv))
        report("prune", layer + 1, total, f"layer {layer} done")
    for name, weight in plan.weights.items():
        _set_parameter(view.model, name, weight)
    if plan.removed_layers:
        view.remove_layers(plan.removed_layers)
    view.write_sizes_to_config()


def _set_parameter(model: nn.Module, name: str, weight: torch.Tensor) -> None:
    """Put a refitted weight in place of an old one, with its dtype, device and ``requires_grad``."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = owner.get_parameter(attribute)
    _check_shape(name, weight, old.shape)
    new = weight.to(device=old.device, dtype=old.dtype, copy=True)
    setattr(owner, attribute, nn.Parameter(new, requires_grad=old.requires_grad))


def _check_weights(view: ModelView, plan: PruningPlan) -> None:
    """Refuse refitted weights of names or shapes that the pruned model doesn't have, before it is touched."""
    shapes = {name: tuple(p.shape) for name, p in view.model.named_parameters(remove_duplicate=False)}
    unknown = sorted(set(plan.weights) - set(shapes))
    if unknown:
        raise PlanError(f"the plan holds weights that the model doesn't have: {', '.join(unknown)}")
    shapes |= _narrowed_shapes(view, plan)
    for name, weight in plan.weights.items():
        _check_shape(name, weight, shapes[name])


def _narrowed_shapes(view: ModelView, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """The shapes that the matrices around what goes will have, in the module's storage orientation."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, kept in plan.kept_neurons.items():
        mlp = view.mlp(layer)
        hidden, rows = mlp.down_weight.shape[0], len(kept) * (2 if mlp.kind == "fused_glu" else 1)
        shapes = {"gate": (rows, hidden), "up": (rows, hidden), "down": (hidden, len(kept))}
        for role, shape in shapes.items():
            if role in mlp.names:
                found[mlp.names[role]] = shape[::-1] if mlp.down_transposed else shape
    for layer, heads in plan.kept_heads.items():
        block = view.attention(layer)
        shape = (block.o_weight.shape[0], len(heads.query) * block.head_dim)
        found[block.names["output"]] = shape[::-1] if block.o_transposed else shape
    return found


def _check_shape(name: str, weight: torch.Tensor, needed: Sequence[int]) -> None:
    if tuple(weight.shape) != tuple(needed):
        raise PlanError(f"the plan's {name} has shape {list(weight.shape)}, needed is {list(needed)}")


def _copy_of_the_rest(model: M, view: ModelView, plan: PruningPlan) -> M:
    """A deep copy that doesn't duplicate what is about to be replaced.

    ``copy.deepcopy`` takes an object that its memo already knows as copied. Weights that ``keep`` replaces
    by new ones, and layers that go, are entered there as themselves: until ``_shrink`` is through, the copy
    borrows them.
    """
    # T5's first layer hands a module on to the layer that follows it, so it must be the copy's own
    own = {0} if view.stack.first_layer_only else set()
    borrowed: list[Any] = [view.layers[layer] for layer in plan.removed_layers if layer not in own]
    for layer in plan.kept_neurons:
        if layer not in plan.removed_layers:
            mlp = view.mlp(layer)
            modules = (mlp.gate_module, mlp.up_module, mlp.down_module)
            borrowed += [module.weight for module in modules if module is not None]
    for layer in plan.kept_experts:
        borrowed += view.experts(layer).parameters
    return copy.deepcopy(model, {id(thing): thing for thing in borrowed})
