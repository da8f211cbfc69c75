"""The inverse of a large positive matrix, in its own memory, nearly all of it as products of matrices.

LAPACK's factorisation and inversion reach a third of a product's speed on processors whose maker is not the
library's. The symmetric sweep (Goodnight 1979, in blocks) takes as many operations, I³, nearly all of them in
products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from optipfair_engine.errors import CalibrationError

#: Relative to the mean of the diagonal; the last is far below what calibration is exact to.
JITTERS = (0.0, 1e-12, 1e-10, 1e-8, 1e-6)

#: Inputs that are swept together: the inner size of the products.
_SWEPT = 256

#: Rows of one product, and of one step over a large matrix.
PANEL = 512


def inverse_of(build: Callable[[], Tensor]) -> Tensor:
    """The inverse of the fresh positive matrix that ``build`` makes, in its memory.

    A rank-deficient one gets a little jitter.

    Raises:
        CalibrationError: it is not positive with jitter either.
    """
    for jitter in JITTERS:
        matrix = build()
        if jitter:
            matrix.diagonal().add_(jitter * matrix.diagonal().mean())
        if _invert_lower(matrix):
            for rows in panels(len(matrix)):
                mirror(matrix, rows)
            return matrix
    raise CalibrationError("The Gram matrix of a layer's input is not positive: calibration is degenerate.")


def narrow_inverse_of(build: Callable[[], Tensor]) -> Tensor:
    """:func:`inverse_of` in float32, in half of the memory of the float64 matrix that ``build`` makes.

    It has ones on its diagonal meanwhile: each entry is then rounded by a share of what it can be at most.
    That changes A⁻¹_jj by some 1e-6 of Σ_i (A⁻¹_ij)², which is at most A⁻¹_jj / λ where A contains λ times
    its diagonal.
    """
    scale = torch.empty(0)

    def with_ones() -> Tensor:
        nonlocal scale
        matrix = build()
        scale = matrix.diagonal().rsqrt()
        narrow = matrix.view(torch.float32).view(-1)[: matrix.numel()].view(matrix.shape)
        for rows in panels(len(matrix)):  # front to back: no row's new place is behind its old one
            narrow[rows] = (matrix[rows] * scale[rows, None] * scale).float()
        return narrow

    inverse = inverse_of(with_ones)
    scale = scale.float()
    for rows in panels(len(inverse)):
        inverse[rows].mul_(scale[rows, None] * scale)
    return inverse


def panels(size: int) -> Iterator[slice]:
    """The rows of a matrix of this size, some at a time."""
    for start in range(0, size, PANEL):
        yield slice(start, min(size, start + PANEL))


def mirror(matrix: Tensor, rows: slice) -> None:
    """Make the upper triangle of these columns equal to the lower one of these rows."""
    matrix[: rows.start, rows] = matrix[rows, : rows.start].T
    square = matrix[rows, rows]
    square.copy_(square.tril() + square.tril(-1).T)


def _invert_lower(matrix: Tensor) -> bool:
    """Put the inverse into the lower triangle (what lies above is spent); False if it is not positive."""
    size = len(matrix)
    for start in range(0, size, _SWEPT):
        stop = min(size, start + _SWEPT)
        factor, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop].double())
        if int(failed):
            return False
        strip = torch.cat([matrix[start:stop, :start], matrix[stop:, start:stop].T], dim=1)
        inverse = torch.cholesky_inverse(factor).to(matrix.dtype)
        swept = inverse @ strip
        _update(matrix, strip, swept, start, stop)
        matrix[start:stop, :start] = swept[:, :start]
        matrix[stop:, start:stop] = swept[:, start:].T
        matrix[start:stop, start:stop] = -inverse
    for rows in panels(size):
        matrix[rows, : rows.stop].neg_()
    return True


def _update(matrix: Tensor, strip: Tensor, swept: Tensor, start: int, stop: int) -> None:
    """Subtract stripᵀ·swept from all that is neither in the rows nor in the columns that are swept."""
    gap = stop - start
    for rows in panels(start):
        matrix[rows, : rows.stop].addmm_(strip[:, rows].T, swept[:, : rows.stop], alpha=-1)
    for rows in panels(len(matrix) - stop):
        below, end = slice(stop + rows.start, stop + rows.stop), start + rows.stop
        left = strip[:, start + rows.start : end].T
        matrix[below, :start].addmm_(left, swept[:, :start], alpha=-1)
        matrix[below, stop : end + gap].addmm_(left, swept[:, start:end], alpha=-1)
