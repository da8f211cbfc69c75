"""How many neurons or layers stay, computed exactly.

Percentages are read as the decimal numbers that people wrote (29 % of 100 removes 29, although ``29 / 100 *
100`` is 28.999… in binary floating point).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from numbers import Integral

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.words import EXPANSION_DIVISORS

#: What people are told when rounding undoes what they asked for.
NOTHING_PRUNED = (
    "nothing is pruned: after rounding, every layer keeps all that it has; use a larger pruning_percentage, "
    "a smaller expansion_rate or a smaller expansion_divisor"
)


def exact(value: float | int | str) -> Fraction:
    """The decimal number that a float prints as, as an exact fraction.

    Raises:
        InvalidOptionError: NaN, infinity, a bool, or no number at all.
    """
    if isinstance(value, bool):
        raise InvalidOptionError(f"a number is needed, got {value!r}")
    try:
        return Fraction(Decimal(str(value)))
    except (ArithmeticError, ValueError) as error:
        raise InvalidOptionError(f"a finite number is needed, got {value!r}") from error


def kept_by_percentage(size: int, percentage: float) -> int:
    """``size - int(percentage / 100 * size)``, exactly; at least 1 because ``percentage`` is below 100."""
    share = exact(percentage)
    if not 0 <= share < 100:
        raise InvalidOptionError(f"pruning_percentage must be at least 0 and below 100, got {percentage}")
    return size - int(share * size / 100)


def kept_by_expansion_rate(size: int, hidden_size: int, expansion_rate: float) -> int:
    """``round(expansion_rate / 100 * hidden_size)``, exactly (halves to the even number).

    Raises:
        InvalidOptionError: the rate is not positive, leaves no neuron, or would make the layer larger.
    """
    kept = round(exact(expansion_rate) * hidden_size / 100)
    if kept < 1:
        raise InvalidOptionError(f"expansion_rate {expansion_rate}% of {hidden_size} leaves no neuron")
    if kept > size:
        raise InvalidOptionError(
            f"Target expansion rate ({expansion_rate:.10g}%) would increase the model size. "
            f"Current expansion rate is {100 * size / hidden_size:.2f}%."
        )
    return kept


def rounded_to_divisor(kept: int, size: int, divisor: int) -> int:
    """The multiple of ``divisor`` nearest to ``kept`` (halves up), at least one multiple, at most ``size``.

    Raises:
        InvalidOptionError: an unknown divisor, or a layer smaller than one multiple.
    """
    if divisor not in EXPANSION_DIVISORS:
        raise InvalidOptionError(
            f"expansion_divisor must be one of {list(EXPANSION_DIVISORS)} or None. Got: {divisor}"
        )
    if size < divisor:
        raise InvalidOptionError(f"expansion_divisor {divisor} is larger than the layer's {size} neurons")
    nearest = (2 * kept + divisor) // (2 * divisor) * divisor
    return max(divisor, min(nearest, size // divisor * divisor))


def kept_neurons_count(
    size: int,
    hidden_size: int,
    *,
    pruning_percentage: float | None = None,
    expansion_rate: float | None = None,
    expansion_divisor: int | None = None,
) -> int:
    """How many of a layer's ``size`` intermediate neurons stay.

    Raises:
        InvalidOptionError: both sizes, none of them, or one out of range.
    """
    if pruning_percentage is not None and expansion_rate is not None:
        raise InvalidOptionError(
            "pruning_percentage and expansion_rate are mutually exclusive. Provide only one."
        )
    if expansion_rate is not None:
        kept = kept_by_expansion_rate(size, hidden_size, expansion_rate)
    elif pruning_percentage is not None:
        kept = kept_by_percentage(size, pruning_percentage)
    elif expansion_divisor is not None:
        raise InvalidOptionError(
            "expansion_divisor cannot be used alone. "
            "Please provide either pruning_percentage or expansion_rate."
        )
    else:
        raise InvalidOptionError("Provide either pruning_percentage or expansion_rate.")
    return kept if expansion_divisor is None else rounded_to_divisor(kept, size, expansion_divisor)


def warn_if_nothing_changes(sizes: Iterable[tuple[int, int]], *, asked: bool, stacklevel: int = 3) -> None:
    """Warn when pruning was asked for, and rounding gave every layer its old size again."""
    if asked and all(kept == size for kept, size in sizes):
        warnings.warn(NOTHING_PRUNED, stacklevel=stacklevel)


def layers_by_percentage(num_layers: int, percentage: float) -> int:
    """``int(percentage / 100 * num_layers)``, exactly.

    Raises:
        InvalidOptionError: out of range, or no layer at all would go.
    """
    share = exact(percentage)
    if not 0 < share < 100:
        raise InvalidOptionError(f"depth_pruning_percentage must be above 0 and below 100, got {percentage}")
    count = int(share * num_layers / 100)
    if count == 0:
        raise InvalidOptionError(
            f"depth_pruning_percentage {percentage:.10g}% of {num_layers} layers would remove 0 layers"
        )
    return count


def checked_layer_indices(layer_indices: Iterable[object], num_layers: int) -> tuple[int, ...]:
    """``layer_indices`` sorted, as Python integers; NumPy's integers are welcome, bools are not.

    Raises:
        TypeError: not a list of integers.
        InvalidOptionError: empty, out of range, or with duplicates.
    """
    if isinstance(layer_indices, (str, bytes)) or not isinstance(layer_indices, Iterable):
        raise TypeError(f"layer_indices must be a list, got {type(layer_indices).__name__}")
    indices = [_as_int(index) for index in layer_indices]
    if not indices:
        raise InvalidOptionError("layer_indices cannot be an empty list")
    invalid = [index for index in indices if not 0 <= index < num_layers]
    if invalid:
        raise InvalidOptionError(
            f"Invalid layer indices: {invalid}. "
            f"Model has {num_layers} layers (valid indices: 0-{num_layers - 1})"
        )
    if len(set(indices)) != len(indices):
        raise InvalidOptionError("layer_indices contains duplicate values")
    return tuple(sorted(indices))


def _as_int(index: object) -> int:
    if getattr(index, "ndim", None) == 0:  # a scalar of NumPy or torch
        index = index.item()  # type: ignore[attr-defined]
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise TypeError("All elements in layer_indices must be integers")
    return int(index)
