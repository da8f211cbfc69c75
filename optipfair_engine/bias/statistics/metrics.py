"""Bias metrics of a pair: how far its activations are apart, per layer, per component, and overall.

The difference at a position is the mean over features of |a₁ − a₂|; every figure below summarises such
positions. Summaries are kept as moments (count, mean, sum of squared deviations, least, greatest), which
merge exactly, so the same code serves two dictionaries of activations and a stream of batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.activations.pairs import Activations, at_least_float32
from optipfair_engine.bias.prompts.alignment import Alignment, Unit
from optipfair_engine.errors import InvalidOptionError, NonFiniteResultError

Array = npt.NDArray[np.float64]

#: The columns of moments, and the scopes: all compared positions, and those from the first difference on.
COUNT, MEAN, SQUARES, LEAST, GREATEST = range(5)
ALL_POSITIONS, FROM_FIRST_DIFFERENCE = range(2)

ACTIVATION_WARNING: Final = (
    "An activation difference says that the model tells the two prompts apart inside, not that it treats "
    "them unfairly; compare it with control pairs, and with what the model writes or prefers."
)


def moments(values: Array) -> Array:
    """Moments ``[5]`` of the values of some positions; all zero for none."""
    if not len(values):
        return np.zeros(5)
    mean = values.mean()
    return np.array(
        [len(values), mean, np.square(values - mean).sum(), values.min(), values.max()], dtype=np.float64
    )


def merge_moments(rows: Array) -> Array:
    """Moments of all positions together, from ``[groups, 5]`` (Chan, Golub & LeVeque 1983, eq. 1.5)."""
    rows = rows[rows[:, COUNT] > 0]
    if not len(rows):
        return np.zeros(5)
    count = rows[:, COUNT].sum()
    mean = (rows[:, COUNT] * rows[:, MEAN]).sum() / count
    squares = (rows[:, SQUARES] + rows[:, COUNT] * np.square(rows[:, MEAN] - mean)).sum()
    return np.array([count, mean, squares, rows[:, LEAST].min(), rows[:, GREATEST].max()])


def _summary(row: Array) -> dict[str, Any]:
    """The guide's keys. The sample deviation of one position is undefined: null."""
    count, mean, squares = float(row[COUNT]), float(row[MEAN]), float(row[SQUARES])
    spread = math.sqrt(squares / (count - 1)) if count > 1 else (None if count else 0.0)
    return {
        "mean_difference": mean,
        "max_difference": float(row[GREATEST]),
        "min_difference": float(row[LEAST]),
        "std_difference": spread,
        "l1_norm": count * mean,
        "l2_norm": math.sqrt(squares + count * mean * mean),
    }


def _block(rows: Array, has_order: bool) -> dict[str, Any]:
    """Summary of ``rows [groups, scopes, 5]`` over all positions, with the later scope nested."""
    block = _summary(merge_moments(rows[:, ALL_POSITIONS]))
    if has_order:
        later = merge_moments(rows[:, FROM_FIRST_DIFFERENCE])
        block["from_first_difference"] = {**_summary(later), "positions": int(later[COUNT])}
    return block


def build_metrics(
    keys: Sequence[str],
    statistics: Array,
    *,
    aliases: Mapping[str, str],
    alignment: dict[str, object],
    has_order: bool = True,
) -> dict[str, Any]:
    """The guide's metrics from moments.

    Args:
        keys: layer keys, one a row.
        statistics: moments ``[keys, scopes, 5]``.
        aliases: keys whose tensor is another key's (``mlp_output`` is ``down_proj`` in most families); they
            have
            their own entries but count once overall.
        alignment: the report on what was compared.
        has_order: whether the position of the first difference is known.
    """
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        parts = split_key(key)
        if parts is not None:
            groups.setdefault(parts[0], []).append(row)
    counted = [row for row, key in enumerate(keys) if key not in aliases]
    return {
        "layer_metrics": {key: _block(statistics[row : row + 1], has_order) for row, key in enumerate(keys)},
        "component_metrics": {
            name: _component(keys, rows, statistics, has_order) for name, rows in groups.items()
        },
        "overall_metrics": {
            **_block(statistics[counted], has_order),
            "total_layers": len(counted),
            "counted_once": _aliased_components(aliases),
        },
        "alignment": alignment,
        "warnings": [ACTIVATION_WARNING, *_alignment_warnings(alignment)],
    }


def _component(
    keys: Sequence[str], rows: Sequence[int], statistics: Array, has_order: bool
) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: (split_key(keys[row]) or ("", 0))[1])
    block = _block(statistics[ordered], has_order)
    block["num_layers"] = len(ordered)
    if len(ordered) > 1:
        means = {keys[row]: float(statistics[row, ALL_POSITIONS, MEAN]) for row in ordered}
        block["progression_metrics"] = _progression(means)
    return block


def _progression(means: dict[str, float]) -> dict[str, Any]:
    values = list(means.values())
    first, last, greatest = values[0], values[-1], max(values)
    return {
        "first_to_last_ratio": _ratio(last, first),
        "max_to_first_ratio": _ratio(greatest, first),
        "is_increasing": last > first,
        "layer_with_max_diff": max(means, key=lambda key: means[key]),
        "mean_diffs_by_layer": means,
    }


def _ratio(value: float, base: float) -> float | None:
    """Value / base; 1 where both are equal (even zero), else null against zero: JSON has no infinity."""
    if value == base:
        return 1.0
    return value / base if base else None


def _aliased_components(aliases: Mapping[str, str]) -> list[list[str]]:
    pairs = {(alias.split("_layer_")[0], name.split("_layer_")[0]) for alias, name in aliases.items()}
    return [list(pair) for pair in sorted(pairs)]


def _alignment_warnings(alignment: Mapping[str, object]) -> list[str]:
    found = []
    if alignment.get("unaligned"):
        found.append("Some tokens stand in one prompt only and were not compared; see alignment.unaligned.")
    if alignment.get("pooled"):
        found.append(
            "The changed words have different numbers of tokens: their mean was compared (alignment.pooled)."
        )
    return found


def pooled_rows(activations: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Mean over each span of positions of ``[positions, features]``: one row a span."""
    return torch.stack([activations[start:stop].mean(dim=0) for start, stop in spans])


def _sides(first: Tensor, second: Tensor, units: Sequence[Unit] | None, key: str) -> tuple[Tensor, Tensor]:
    """Rows to subtract, at least float32, on the first one's device."""
    first, second = at_least_float32(first), at_least_float32(second).to(first.device)
    first, second = first.reshape(-1, first.shape[-1]), second.reshape(-1, second.shape[-1])
    if first.shape[-1] != second.shape[-1]:
        raise InvalidOptionError(
            f"{key} has {first.shape[-1]} features on one side and {second.shape[-1]} on the other"
        )
    if units is not None:
        return (
            pooled_rows(first, [(u.start1, u.stop1) for u in units]),
            pooled_rows(second, [(u.start2, u.stop2) for u in units]),
        )
    if len(first) != len(second):
        raise InvalidOptionError(
            f"{key} has {len(first)} positions on one side and {len(second)} on the other; positions "
            "can only be matched with the tokens, which get_activation_pairs keeps with its results"
        )
    return first, second


def calculate_activation_differences(
    act1: Mapping[str, Tensor], act2: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Layer key → mean over features of ``|a₁ − a₂|`` ``[compared positions]``, for the keys of both sides.

    Raises:
        ValueError: plain dictionaries with different numbers of positions, or no key in common.
    """
    alignment = _alignment_of(act1, act2)
    units = alignment.compared if alignment is not None else None
    shared = [key for key in act1 if key in act2]
    if not shared:
        raise InvalidOptionError("The two sides have no layer in common")
    differences = {}
    for key in shared:
        first, second = _sides(act1[key], act2[key], units, key)
        differences[key] = (first - second).abs().mean(dim=1) if len(first) else first.new_zeros(0)
    return differences


def calculate_bias_metrics(act1: Mapping[str, Tensor], act2: Mapping[str, Tensor]) -> dict[str, Any]:
    """The guide's metrics of a pair of activations.

    Sides from ``get_activation_pairs`` are compared as their ``alignment`` says; plain dictionaries position
    by position. Every block's figures are over all compared positions; the same figures from the first
    difference on stand under ``from_first_difference`` (only where the tokens are known). Numbers are finite
    or null.

    Raises:
        ValueError: plain dictionaries with different numbers of positions, or no key in common.
        NonFiniteResultError: activations that are NaN or infinite; the text names the layer.
    """
    alignment = _alignment_of(act1, act2)
    differences = calculate_activation_differences(act1, act2)
    broken = [key for key, difference in differences.items() if not bool(difference.isfinite().all())]
    if broken:
        raise NonFiniteResultError(
            f"The activations of {broken[0]} are not finite (as those of {len(broken)} of {len(differences)} "
            "layers): run the model in float32 or bfloat16"
        )
    rows = [_pair_moments(difference, alignment) for difference in differences.values()]
    return build_metrics(
        list(differences),
        np.stack(rows),
        aliases=find_aliases(act1, act2),
        alignment=_report(act1, act2, alignment),
        has_order=alignment is not None,
    )


def _pair_moments(difference: Tensor, alignment: Alignment | None) -> Array:
    values = difference.detach().cpu().double().numpy()
    start = alignment.first_difference if alignment is not None else None
    later = values[start:] if start is not None else values[:0]
    return np.stack([moments(values), moments(later)])


def _alignment_of(act1: Mapping[str, Tensor], act2: Mapping[str, Tensor]) -> Alignment | None:
    """The alignment, if both are sides of the same pair."""
    if not isinstance(act1, Activations) or not isinstance(act2, Activations):
        return None
    if act1.alignment is None or act2.alignment is None or act1.alignment != act2.alignment.swapped():
        return None
    return act1.alignment


def _report(
    act1: Mapping[str, Tensor], act2: Mapping[str, Tensor], alignment: Alignment | None
) -> dict[str, object]:
    if alignment is not None and isinstance(act1, Activations) and isinstance(act2, Activations):
        return alignment.as_dict(act1.tokens, act2.tokens)
    return {"method": "position by position", "share_aligned": 1.0, "pooled": [], "unaligned": []}


def find_aliases(act1: Mapping[str, Tensor], act2: Mapping[str, Tensor]) -> dict[str, str]:
    """``mlp_output`` keys whose tensors are those of ``down_proj`` on both sides."""
    aliases = {}
    for key in act1:
        other = key.replace("mlp_output_layer_", "down_proj_layer_")
        if other == key or other not in act1 or key not in act2 or other not in act2:
            continue
        if torch.equal(act1[key], act1[other]) and torch.equal(act2[key], act2[other]):
            aliases[key] = other
    return aliases
