"""What options may say beside a plan that is given: what the plan says too, or another size.

An option at its default says nothing. Size, ``expansion_divisor`` and ``allocation`` may differ from the
plan's, which is then made anew (``curves.replan``). Any other option must agree with the plan, or leave the
matter to it: a plan is applied as it is, and what would not be read is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.options.rules import SIZES, WIDTH_FIELDS, WORDS_OF_PLAN, asked_layers
from optipfair_engine.pruning.depth.choice import count_to_remove
from optipfair_engine.pruning.sizes import checked_layer_indices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optipfair_engine.options.words import Allocation
    from optipfair_engine.plans.plan import PruningPlan

#: What makes a plan anew, of a kind that has widths or heads.
_RESIZING = (*WIDTH_FIELDS, "allocation")


def check_beside_plan(options: PruneOptions, plan: PruningPlan) -> None:
    """Refuse options that contradict a plan, or that would not be read beside one.

    Raises:
        InvalidOptionError: names the option and what would be right.
    """
    kind, defaults = plan_type(plan), PruneOptions()
    if options.pruning_type not in (defaults.pruning_type, kind):
        raise _contradiction("pruning_type", options.pruning_type, kind)
    for name in WORDS_OF_PLAN:
        default = getattr(defaults, name)
        asked, made = getattr(options, name), getattr(plan.provenance, name) or default
        if asked not in (default, made):
            raise _contradiction(name, asked, made)
    chosen_anew = {
        f'preset "{options.preset}"': options.preset != "guide",
        "keep_statistics": options.keep_statistics,
        "fairness": options.fairness is not None,
        "reconstruction": options.reconstruction is not None,
        'allocation "searched"': options.allocation == "searched",
    }
    if kind == "DEPTH":
        chosen_anew |= {name: getattr(options, name) is not None for name in _RESIZING}
    unread = [name for name, given in chosen_anew.items() if given]
    if unread:
        raise InvalidOptionError(
            f"{', '.join(unread)} can't be used with an earlier {kind} plan: leave it out to apply the plan, "
            "or leave out the plan to prune anew"
        )
    _check_layers(options, plan)


def asks_for_another_size(options: PruneOptions, plan: PruningPlan) -> bool:
    """Whether options name a size, divisor or allocation that isn't the plan's own: it is made anew then."""
    if options.allocation is not None and options.allocation != allocation_of(plan):
        return True
    asked = {name: getattr(options, name) for name in WIDTH_FIELDS if getattr(options, name) is not None}
    return any(getattr(plan.provenance, name) != value for name, value in asked.items())


def size_of(options: PruneOptions, plan: PruningPlan) -> Mapping[str, Any]:
    """The fields of the size to plan for: the options' with their divisor, or the plan's with its own."""
    asked = {name: getattr(options, name) for name in WIDTH_FIELDS}
    if any(asked[name] is not None for name in SIZES):
        return asked
    return {
        name: getattr(plan.provenance, name) if asked[name] is None else asked[name] for name in WIDTH_FIELDS
    }


def plan_type(plan: PruningPlan) -> str:
    """The pruning type of a plan, read off its contents where its method doesn't say it."""
    others = {"DEPTH": plan.removed_layers, "ATTENTION": plan.kept_heads, "EXPERTS": plan.kept_experts}
    found = next((kind for kind, changed in others.items() if changed), "MLP_GLU")
    return plan.provenance.pruning_type or found


def allocation_of(plan: PruningPlan) -> Allocation:
    """How the plan divided its neurons among the layers."""
    return "uniform" if plan.provenance.allocation in (None, "uniform") else "allocated"


def _contradiction(name: str, asked: object, made: object) -> InvalidOptionError:
    return InvalidOptionError(
        f"{name} {asked} contradicts the plan, which was made with {made}: leave it out to apply the plan, "
        "or leave out the plan to prune anew"
    )


def _check_layers(options: PruneOptions, plan: PruningPlan) -> None:
    """Refuse other layers, or another number of them, than the plan's."""
    removed = plan_type(plan) == "DEPTH"
    if options.layer_indices is not None:
        asked = checked_layer_indices(options.layer_indices, plan.num_layers)
        own = plan.removed_layers if removed else plan.provenance.layer_indices
        made = tuple(range(plan.num_layers)) if own is None else own
        if asked != made:
            raise _contradiction("layer_indices", list(asked), list(made))
    number = {name: said for name, said in asked_layers(options).items() if name != "layer_indices"}
    if not number:
        return
    count = count_to_remove(plan.num_layers, number)
    if count != len(plan.removed_layers):
        raise InvalidOptionError(
            f"the plan removes {len(plan.removed_layers)} layers, not {count}: another number of layers is "
            "chosen anew, without the plan"
        )
