"""Dividing a budget of neurons among layers: uniformly, by layer importance, or by predicted error.

Widths are numbers of neurons that stay. Every function meets the total exactly where a divisor allows it, and
never exceeds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.pruning.targets import Target

#: How strongly importance modulates the ratio of a layer; from the trials on SmolLM2-135M.
STRENGTH = 0.25

#: No layer loses more than this share, whatever the budget's allocator would like.
LARGEST_RATIO = 0.95

#: Layers may lose between (1 − SPREAD) and (1 + SPREAD) times the mean ratio when errors are added up: errors
#: of different layers don't simply add, and allocators that believe it concentrate too much.
SPREAD = 0.4


def budget_total(sizes: Mapping[int, int], costs: Mapping[int, int], target: Target, divisor: int = 1) -> int:
    """How many neurons may stay in all, for a model of the target's size at most.

    Args:
        sizes: layer → intermediate size.
        costs: layer → what goes with one neuron, in the target's unit.
        target: the size that the model may have.
        divisor: widths are multiples of it, so that this many neurons stay in each layer at least.

    Raises:
        InvalidOptionError: no width could reach the target.
    """
    removable = sum((size - 1) * costs[layer] for layer, size in sizes.items()) * LARGEST_RATIO
    removable = min(removable, sum((size - divisor) * costs[layer] for layer, size in sizes.items()))
    if target.excess > removable:
        raise target.unreachable(target.size - int(removable), "neurons")
    # with layers of unequal cost the uniform ratio decides how many neurons that is
    whole = sum(size * costs[layer] for layer, size in sizes.items())
    return sum(size - -(-size * target.excess // whole) for size in sizes.values())


def uniform_widths(sizes: Mapping[int, int], total: int, divisor: int = 1) -> dict[int, int]:
    """The same share of every layer."""
    share = _share(sizes, total)
    return _round({layer: size * share for layer, size in sizes.items()}, sizes, total, divisor)


def importance_widths(
    sizes: Mapping[int, int],
    importance: Mapping[int, float],
    total: int,
    divisor: int = 1,
    *,
    strength: float = STRENGTH,
) -> dict[int, int]:
    """Ratio of layer l = r·(1 − ``strength``·z(log importance_l)), renormalised to the budget.

    Args:
        sizes: layer → intermediate size.
        importance: layer → 1 − cos of its input and output.
        total: neurons that stay, over all layers.
        divisor: widths are multiples of it.
        strength: 0 is uniform.

    Raises:
        CalibrationError: an importance that is NaN or infinite.
    """
    scores = _standardised({layer: importance[layer] for layer in sizes})
    ratio = 1 - _share(sizes, total)
    wanted = {layer: ratio * max(0.0, 1 - strength * scores[layer]) for layer in sizes}
    ratios = _renormalise(wanted, sizes, sum(sizes.values()) - total)
    return _round({layer: size * (1 - ratios[layer]) for layer, size in sizes.items()}, sizes, total, divisor)


def curve_widths(
    sizes: Mapping[int, int],
    curves: Mapping[int, Sequence[float]],
    total: int,
    divisor: int = 1,
    *,
    spread: float = SPREAD,
) -> dict[int, int]:
    """Widths that make the sum of the layers' predicted relative errors small, within ``spread`` of uniform.

    Args:
        sizes: layer → intermediate size.
        curves: layer → error after 0, 1, … removed neurons.
        total: neurons that stay, over all layers.
        divisor: widths are multiples of it.
        spread: see ``SPREAD``.
    """
    ratio = 1 - _share(sizes, total)
    step = {layer: max(divisor, size // 96) for layer, size in sizes.items()}
    least = {layer: math.floor(size * max(0.0, ratio * (1 - spread))) for layer, size in sizes.items()}
    most = {
        layer: math.floor(size * min(LARGEST_RATIO, ratio * (1 + spread))) for layer, size in sizes.items()
    }
    removed = dict(least)
    left = sum(sizes.values()) - total - sum(removed.values())
    while left > 0:
        open_layers = [layer for layer in sizes if removed[layer] < most[layer]]
        if not open_layers:
            break
        count = {layer: min(step[layer], most[layer] - removed[layer], left) for layer in open_layers}
        best = min(open_layers, key=lambda i: (_slope(curves[i], removed[i], count[i]), i))
        removed[best] += count[best]
        left -= count[best]
    return _round(
        {layer: float(size - removed[layer]) for layer, size in sizes.items()}, sizes, total, divisor
    )


def _slope(curve: Sequence[float], removed: int, count: int) -> float:
    """Error added per neuron by removing ``count`` more."""
    return (curve[removed + count] - curve[removed]) / count


def _share(sizes: Mapping[int, int], total: int) -> float:
    everything = sum(sizes.values())
    if not len(sizes) <= total <= everything:
        raise InvalidOptionError(
            f"{total} neurons for {len(sizes)} layers of {everything} neurons can't be met"
        )
    return total / everything


def _standardised(values: Mapping[int, float]) -> dict[int, float]:
    """z-scores of the logarithms; all zero where all values agree."""
    # float noise can make the cosine of an idle layer exceed 1 by a rounding error
    logs = {layer: math.log(max(value, 1e-9)) for layer, value in values.items() if math.isfinite(value)}
    if len(logs) < len(values):
        raise CalibrationError("A layer's importance is undefined: hidden states of zeros or NaN.")
    mean = sum(logs.values()) / len(logs)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs.values()) / len(logs))
    return {layer: (value - mean) / deviation if deviation > 0 else 0.0 for layer, value in logs.items()}


def _renormalise(ratios: Mapping[int, float], sizes: Mapping[int, int], removed: int) -> dict[int, float]:
    """Scale ratios so that they remove ``removed`` neurons in all; what is capped goes to the others."""
    found = dict(ratios)
    for _ in range(20):
        scale_by = {i for i in found if 0 < found[i] < LARGEST_RATIO}
        fixed = sum(found[i] * sizes[i] for i in found if i not in scale_by)
        free = sum(found[i] * sizes[i] for i in scale_by)
        if free <= 0 or abs(free + fixed - removed) < 1e-6:
            break
        factor = (removed - fixed) / free
        found = {i: min(LARGEST_RATIO, v * factor) if i in scale_by else v for i, v in found.items()}
    return found


def _round(wanted: Mapping[int, float], sizes: Mapping[int, int], total: int, divisor: int) -> dict[int, int]:
    """Whole multiples of ``divisor`` nearest to what is wanted, with the total met by largest remainders."""
    if any(size < divisor for size in sizes.values()):
        raise InvalidOptionError(f"divisor {divisor} is larger than a layer's {min(sizes.values())} neurons")
    units = {
        layer: min(max(divisor, int(w // divisor * divisor)), sizes[layer]) for layer, w in wanted.items()
    }
    order = sorted(units, key=lambda layer: (units[layer] - wanted[layer], layer))
    while (left := total - sum(units.values())) >= divisor:
        room = [layer for layer in order if units[layer] + divisor <= sizes[layer]]
        if not room:
            break
        for layer in room[: left // divisor]:
            units[layer] += divisor
    while sum(units.values()) > total:
        able = [layer for layer in units if units[layer] > divisor]
        if not able:
            raise InvalidOptionError(
                f"{total} neurons for {len(sizes)} layers can't be met: with the divisor {divisor} at least "
                f"{sum(units.values())} stay"
            )
        units[max(able, key=lambda layer: (units[layer] - wanted[layer], layer))] -= divisor
    return units
