"""Least-squares refit: the output matrix that best repeats the dense output from the inputs that are kept.

Symbols: W ``[H, I]`` the dense down or output projection, G = XᵀX ``[I, I]`` over calibration tokens of its
input, S the kept inputs, D a positive diagonal, λ the ridge. All factorisations are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.solving.inverse import JITTERS

#: Ridges to choose from, relative to D; then those half-way (of the logarithm) beside the best one.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

RidgeScale = Literal["median", "coordinate"]

#: Inputs whose Gram diagonal is below this share of the median are as dead, and raised to it.
DEAD_FLOOR = 1e-8


@dataclass(frozen=True)
class Refit:
    """A refitted matrix ``weight [H, |S|]`` with its ridge and its relative squared errors.

    ``error`` is tr(E G Eᵀ)/tr(W G Wᵀ) over all calibration tokens, ``held_out_error`` that over the held-out
    ones of a fit that had not seen them (NaN without a hold-out).
    """

    weight: Tensor
    ridge: float
    error: float
    held_out_error: float


def ridge_diagonal(gram: Tensor, scale: RidgeScale = "median") -> Tensor:
    """D ``[I]`` in float64: the median of G's diagonal everywhere, or each own entry (not below a floor).

    The median, not the mean: one massive activation makes the mean of a layer hundreds of times larger.

    Raises:
        CalibrationError: the Gram matrix is not finite, or no input was ever active.
    """
    diagonal = gram.diagonal().double()
    if not bool(torch.isfinite(diagonal).all()):
        raise CalibrationError("Calibration gave activations that are not finite.")
    alive = diagonal[diagonal > 0]
    if len(alive) == 0:
        raise CalibrationError("Calibration gave only zeros as the input of a layer.")
    median = alive.median()
    if scale == "median":
        return median.expand_as(diagonal).clone()
    return diagonal.clamp_min(DEAD_FLOOR * median)


def ridged(gram: Tensor, ridge: float, diagonal: Tensor) -> Tensor:
    """G + λD as a new float64 matrix, with a floor under dead inputs: it can be factorised for λ = 0 too."""
    if ridge < 0:
        raise InvalidOptionError(f"ridge must not be negative, not {ridge}")
    matrix = gram.to(torch.float64, copy=True)
    floor = DEAD_FLOOR * diagonal.median()
    dead = (matrix.diagonal() < floor).double() * floor
    matrix.diagonal().add_(ridge * diagonal + dead)
    return matrix


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor of a positive matrix; a rank-deficient one gets a little jitter."""
    return cholesky_of(matrix.clone)


def cholesky_of(build: Callable[[], Tensor]) -> Tensor:
    """:func:`cholesky` of the fresh matrix that ``build`` makes, in its own memory.

    Large layers count matrices: in float64 one of 8192 inputs has half a gigabyte.
    """
    for jitter in JITTERS:
        # a symmetric matrix is its own transpose, whose column-major order LAPACK works on in place
        matrix = build().mT
        if jitter:
            matrix.diagonal().add_(jitter * matrix.diagonal().mean())
        info = torch.zeros((), dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(matrix, out=(matrix, info))
        if int(info) == 0:
            return matrix
    raise CalibrationError("The Gram matrix of a layer's input is not positive: calibration is degenerate.")


class Normal:
    """The normal equations of a refit: what doesn't depend on λ, in float64.

    With C the target times the kept inputs (W G[:,S] unless given): W′ = (C + λ W[:,S] D)(G[S,S] + λD)⁻¹.
    """

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor,
        kept: Tensor | Sequence[int],
        *,
        diagonal: Tensor | None = None,
        target: Tensor | None = None,
    ) -> None:
        indices = torch.as_tensor(kept, dtype=torch.int64, device=gram.device)
        scale = ridge_diagonal(gram) if diagonal is None else diagonal.double()
        w = weight.to(gram.device)
        self.diagonal = scale[indices]
        self.chosen = torch.empty(len(indices), len(indices), dtype=torch.float64, device=gram.device)
        for rows in torch.arange(len(indices), device=gram.device).split(_ROWS):
            self.chosen[rows] = gram[indices[rows]][:, indices].double()
        self.pull = w[:, indices].double() * self.diagonal
        self.right = _times(w, gram, indices) if target is None else target.double()[:, indices]

    def solve(self, ridge: float) -> Tensor:
        """W′ ``[H, |S|]`` in float64."""
        factor = cholesky_of(lambda: ridged(self.chosen, ridge, self.diagonal))
        return torch.cholesky_solve((self.right + ridge * self.pull).T, factor).T


#: Rows of a Gram matrix that are widened to float64 at once.
_ROWS = 512


def _times(weight: Tensor, gram: Tensor, columns: Tensor) -> Tensor:
    """W G[:, columns] in float64, some rows of G at a time."""
    total = torch.zeros(len(weight), len(columns), dtype=torch.float64, device=gram.device)
    for rows in torch.arange(len(gram), device=gram.device).split(_ROWS):
        total.addmm_(weight[:, rows].double(), gram[rows][:, columns].double())
    return total


def solve_least_squares(
    weight: Tensor,
    gram: Tensor,
    kept: Tensor | Sequence[int],
    ridge: float = 0.0,
    *,
    diagonal: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """W′ = (T G[:,S] + λ W[:,S] D)(G[S,S] + λD)⁻¹ with T G = W G unless ``target`` is given; float64.

    It minimises ‖T X − W′ X_S‖² + λ‖(W′ − W_S) D^½‖²: the ridge pulls towards the old weights, not to zero.

    Args:
        weight: W ``[H, I]``.
        gram: G ``[I, I]``.
        kept: S, indices of the kept inputs.
        ridge: λ ≥ 0, relative to D.
        diagonal: D ``[I]``; the median of G's diagonal unless given.
        target: C = YᵀX ``[H, I]`` for another target Y than the dense output.
    """
    return Normal(weight, gram, kept, diagonal=diagonal, target=target).solve(ridge)


def output_error(weight: Tensor, gram: Tensor, kept: Tensor | Sequence[int], refitted: Tensor) -> float:
    """Relative squared error tr(E G Eᵀ)/tr(W G Wᵀ) of the output, with E = W − W′ (W′ zero outside S)."""
    w = weight.to(gram.device).double()
    difference = w.clone()
    indices = torch.as_tensor(kept, dtype=torch.int64, device=gram.device)
    difference[:, indices] -= refitted.to(gram.device).double()
    return quadratic(difference, gram) / max(quadratic(w, gram), torch.finfo(torch.float64).tiny)


def quadratic(matrix: Tensor, gram: Tensor) -> float:
    """tr(M G Mᵀ), never below zero."""
    return max(0.0, float(((matrix.float() @ gram.float()).double() * matrix.double()).sum()))


def choose_ridge(
    weight: Tensor,
    fit: Tensor,
    held: Tensor | None,
    kept: Tensor | Sequence[int],
    *,
    ridges: Sequence[float] = RIDGES,
    scale: RidgeScale = "median",
) -> tuple[float, float]:
    """The ridge whose refit on ``fit`` has the least error on ``held``, and that error.

    The search starts in the middle of ``ridges`` and walks while the error falls (it has one valley), then
    tries the geometric means with the neighbours. Without held-out tokens the middle ridge is taken, and the
    error is NaN.
    """
    grid = sorted(ridges)
    place = len(grid) // 2
    if held is None:
        return grid[place], float("nan")
    equations = Normal(weight, fit, kept, diagonal=ridge_diagonal(fit, scale))
    errors: dict[float, float] = {}

    def error_of(ridge: float) -> float:
        if ridge not in errors:
            errors[ridge] = output_error(weight, held, kept, equations.solve(ridge))
        return errors[ridge]

    for step in (1, -1):
        while 0 <= place + step < len(grid) and error_of(grid[place + step]) < error_of(grid[place]):
            place += step
    for neighbour in (place - 1, place + 1):
        if 0 <= neighbour < len(grid):
            error_of(math.sqrt(grid[place] * grid[neighbour]))
    best = min(errors, key=lambda ridge: errors[ridge])
    return best, errors[best]


def refit(
    weight: Tensor,
    fit: Tensor,
    held: Tensor | None,
    kept: Tensor | Sequence[int],
    *,
    ridge: float | None = None,
    scale: RidgeScale = "median",
) -> Refit:
    """Choose a ridge on the held-out part (unless given), then solve with all calibration tokens."""
    chosen, held_error = (ridge, float("nan")) if ridge is not None else (None, 0.0)
    if chosen is None:
        chosen, held_error = choose_ridge(weight, fit, held, kept, scale=scale)
    everything = fit if held is None else fit + held
    diagonal = ridge_diagonal(everything, scale)
    solved = solve_least_squares(weight, everything, kept, chosen, diagonal=diagonal)
    return Refit(solved.float(), chosen, output_error(weight, everything, kept, solved), held_error)
