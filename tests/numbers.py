"""Comparing numbers that two ways of computing the same thing give: rounding grows with what is compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

#: What float32 sums over some hundred terms and a few layers may differ by, as a share of the largest value.
ROUNDING = 1e-5


def assert_near(
    found: Any,
    expected: Any,
    within: float = ROUNDING,
    *,
    scale: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> None:
    """Nothing in ``found`` is further from ``expected`` than ``within`` times the largest expected value.

    Both are tensors, arrays, numbers, sequences or dictionaries of numbers, of the same shape (and keys). The
    largest is taken over ``axis`` (by default over everything). Where what is expected is a small difference
    of large values, ``scale`` is the size of those values.
    """
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = [found[key] for key in expected], list(expected.values())
    found, expected = _array(found), _array(expected)
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    assert np.isfinite(expected).all(), "what is expected is not finite"
    if not expected.size:
        return
    size = np.abs(expected).max(axis=axis, keepdims=True) if scale is None else np.asarray(scale)
    allowed = within * size
    difference = np.abs(found - expected)
    worst = np.unravel_index((difference - allowed).argmax(), difference.shape)
    assert (difference <= allowed).all(), (
        f"at {[int(i) for i in worst]}: {found[worst]!r} is not {expected[worst]!r}; they differ by "
        f"{difference[worst]:.3g}, and at most {np.broadcast_to(allowed, difference.shape)[worst]:.3g} may be"
    )


def _array(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def relative_error(model: torch.nn.Module, other: torch.nn.Module, calibration: Any) -> float:
    """By how much another model's logits on the calibration's batches differ, as a share of their energy."""
    dense, theirs = (logits_on(each, calibration) for each in (model, other))
    return float((dense - theirs).square().sum() / dense.square().sum())


def logits_on(model: torch.nn.Module, calibration: Any) -> torch.Tensor:
    """All logits on the calibration's batches, ``[tokens, vocabulary]``."""
    with torch.no_grad():
        return torch.cat([model(**batch).logits.float().flatten(0, 1) for batch in calibration.batches])
