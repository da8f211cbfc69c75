"""Choosing the layers that go (``DEPTH``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.rules import DEPTH_SIZES
from optipfair_engine.plans.plan import PruningPlan, new_plan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.pruning.sizes import checked_layer_indices, layers_by_percentage

if TYPE_CHECKING:
    from optipfair_engine.architectures.view import WeightsView

_UNSTATED = Provenance()

#: Without calibration; ``importance`` and ``greedy_perplexity`` need it.
LAYER_SELECTION_METHODS = ("last", "first", "custom")


def count_to_remove(num_layers: int, asked: Mapping[str, Any]) -> int | None:
    """How many layers go; ``None`` if they are named.

    ``asked`` is what ``options.rules.asked_layers`` finds in the options.

    Raises:
        InvalidOptionError: not exactly one size is given, or it would remove no layer or all of them.
    """
    number, share, named = DEPTH_SIZES
    if not asked:
        raise InvalidOptionError(f"Must specify one of: {number}, {named}, or {share}")
    if len(asked) > 1:
        raise InvalidOptionError(f"Parameters {number}, {named}, and {share} are mutually exclusive")
    if named in asked:
        return None
    count = layers_by_percentage(num_layers, asked[share]) if share in asked else _positive(asked[number])
    return _not_all(count, num_layers)


def _positive(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value <= 0:
        raise InvalidOptionError("num_layers_to_remove must be a positive integer")
    return int(value)


def _not_all(count: int, num_layers: int) -> int:
    if count >= num_layers:
        raise InvalidOptionError(f"Cannot remove {count} layers from model with {num_layers} layers")
    return count


def select_layers(num_layers: int, asked: Mapping[str, Any], method: str = "last") -> tuple[int, ...]:
    """The sorted indices of the layers that go.

    What is asked for may name them itself, whatever the ``layer_selection_method`` is; otherwise that is
    ``last`` or ``first``.

    Raises:
        InvalidOptionError: sizes that contradict each other or are out of range, an unknown method.
        TypeError: ``layer_indices`` that aren't integers.
    """
    if method not in LAYER_SELECTION_METHODS:
        choices = list(LAYER_SELECTION_METHODS)
        raise InvalidOptionError(f"layer_selection_method must be one of {choices}, got {method}")
    count = count_to_remove(num_layers, asked)
    if count is None:
        removed = checked_layer_indices(asked["layer_indices"], num_layers)
        _not_all(len(removed), num_layers)
        return removed
    if method == "custom":
        raise InvalidOptionError('layer_selection_method "custom" needs layer_indices')
    return tuple(range(count)) if method == "first" else tuple(range(num_layers - count, num_layers))


def least_important(scores: Mapping[int, float], count: int) -> tuple[int, ...]:
    """The ``count`` layers of the lowest importance, sorted; equal scores go to the lower index.

    Raises:
        InvalidOptionError: a score is NaN, so that there is no order.
    """
    undefined = [layer for layer, score in scores.items() if math.isnan(score)]
    if undefined:
        raise InvalidOptionError(
            f"the importance of layers {undefined} is undefined (NaN); name layer_indices"
        )
    return tuple(sorted(sorted(scores, key=lambda layer: (scores[layer], layer))[:count]))


def depth_plan(
    view: WeightsView, removed: tuple[int, ...], provenance: Provenance = _UNSTATED
) -> PruningPlan:
    """A plan that removes these layers, refused for families that can't lose layers."""
    view.check_depth(removed)
    return new_plan(view, replace(provenance, pruning_type="DEPTH"), removed_layers=removed)
