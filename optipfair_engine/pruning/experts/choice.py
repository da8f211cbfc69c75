"""How many experts stay in every layer, and which of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.pruning.sizes import kept_by_percentage, warn_if_nothing_changes
from optipfair_engine.pruning.targets import Target, target_of

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.architectures.routing import Routing
    from optipfair_engine.options.prune import PruneOptions


def kept_count(view: ModelView, layers: list[int], routing: Routing, options: PruneOptions) -> int:
    """How many experts every layer keeps: a plain load knows one number for all of them.

    For a target size the fewest go with which the model has at most that size and which its router allows.

    Raises:
        InvalidOptionError: fewer than the router needs, or a target that can't be reached.
    """
    target = target_of(view, options)
    if target is not None:
        return _kept_for(view, layers, routing, target)
    kept = kept_by_percentage(routing.num_experts, options.percentage)
    check_count(view.model_type, routing, kept, options.share_in_words)
    warn_if_nothing_changes([(kept, routing.num_experts)], asked=options.percentage > 0)
    return kept


def check_count(model_type: str, routing: Routing, kept: int, asked: str) -> None:
    """Refuse a number of experts that the family's router can't choose from.

    Raises:
        InvalidOptionError: says why, and which numbers are possible.
    """
    refusal = routing.refusal(model_type, kept, asked)
    if refusal is not None:
        raise InvalidOptionError(refusal)


def _kept_for(view: ModelView, layers: list[int], routing: Routing, target: Target) -> int:
    """The most experts with which the whole model is no larger than the target."""
    each = sum(
        target.weigh(tensor) // routing.num_experts
        for layer in layers
        for tensor in view.experts(layer).parameters
    )
    possible = routing.possible()
    for kept in reversed(possible):
        if (routing.num_experts - kept) * each >= target.excess:
            return kept
    least = possible[0] if possible else routing.num_experts
    raise target.unreachable(target.size - (routing.num_experts - least) * each, "experts")


def removal_order(scores: Tensor) -> tuple[int, ...]:
    """The experts in the order in which they go, by ``scores`` ``[experts]``: of equals the later first."""
    best_first: list[int] = torch.argsort(scores, descending=True, stable=True).tolist()
    return tuple(reversed(best_first))


def kept_experts(order: tuple[int, ...], count: int, groups: int) -> tuple[int, ...]:
    """The ``count`` experts that stay, sorted: as many from each group, those that would go last."""
    size, share = len(order) // groups, count // groups
    kept: list[int] = []
    for group in range(groups):
        members = [expert for expert in order if expert // size == group]
        kept += members[len(members) - share :]
    return tuple(sorted(kept))
