"""Statistics of activations that are gathered batch by batch: ``update``, ``merge``, ``result``.

An accumulator knows nothing of where activations come from, and its result does not depend on how the tokens
were cut into batches (to rounding).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from optipfair_engine.errors import CalibrationError


class SquaredNorm:
    """Root of the summed squares of each feature over tokens: X_j = ‖x_j‖₂ (as in CFSP, Wanda)."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def update(self, x: Tensor) -> None:
        """Add tokens: ``x`` is ``[tokens, features]``."""
        # float64: the sum of 10⁵ squares must not depend on the batches that it was added in
        squares = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64).square()
        self.total = squares if self.total is None else self.total + squares
        self.tokens += len(x)

    def merge(self, other: SquaredNorm) -> None:
        """Add what another accumulator has seen."""
        if other.total is not None:
            self.total = other.total.clone() if self.total is None else self.total + other.total
        self.tokens += other.tokens

    def result(self) -> Tensor:
        """X ``[features]`` in float64."""
        if self.total is None or self.tokens == 0:
            raise CalibrationError("No calibration token reached the layer.")
        return self.total.sqrt()


class Gram:
    """G = XᵀX ``[features, features]`` over tokens, kept in float32.

    Products of bf16 activations are exact in float32, so on a CPU they may be formed by bf16 units
    (``bf16_products``): three times faster and no less exact. float32 activations never go that way.
    ``total`` is summed in blocks on and above the diagonal only, which saves a third; ``result`` mirrors it.
    """

    def __init__(self, *, bf16_products: bool = True) -> None:
        self.total: Tensor | None = None
        self.tokens = 0
        self.bf16_products = bf16_products
        self.settled = False

    def update(self, x: Tensor) -> None:
        """Add tokens: ``x`` is ``[tokens, features]``, bf16, fp16 or float32."""
        if len(x) == 0:
            return
        if self.total is None:
            self.total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float32)
        elif self.settled:
            self.total = self.total.clone()  # a result that was handed out stays as it is
        self.settled = False
        with fast_products(x.dtype) if self.bf16_products else _nothing():
            wide = x.float()
            for rows in _blocks(x.shape[1]):
                self.total[rows, rows.start :].addmm_(wide[:, rows].T, wide[:, rows.start :])
        self.tokens += len(x)

    def merge(self, other: Gram) -> None:
        """Add what another accumulator has seen; the sum is formed in float64."""
        if other.total is not None:
            if self.total is None:
                self.total = other.total.clone()
            else:
                self.total = (self.total.double() + other.total.double()).float()
            self.settled = False
        self.tokens += other.tokens

    def settle(self) -> None:
        """Make the sum itself the result, so that ``result`` makes no copy until more is added."""
        if self.total is not None and not self.settled:
            _mirror(self.total)
            self.settled = True

    def result(self) -> Tensor:
        """G in float32, exactly symmetric."""
        if self.total is None or self.tokens == 0:
            raise CalibrationError("No calibration token reached the layer.")
        return self.total if self.settled else _mirror(self.total.clone())


def _blocks(size: int) -> list[slice]:
    """The rows of a symmetric matrix in up to four blocks; small ones aren't worth cutting."""
    step = size if size < 512 else -(-size // 4)
    return [slice(start, min(start + step, size)) for start in range(0, size, max(step, 1))]


def _mirror(matrix: Tensor) -> Tensor:
    """Copy what is above the diagonal below it, in place."""
    for rows in _blocks(len(matrix)):
        square = matrix[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
    return matrix


class CrossGram:
    """C = YᵀX ``[outputs, features]`` between targets and inputs of the same tokens, kept in float32."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.target_total: Tensor | None = None
        self.tokens = 0

    def update(self, y: Tensor, x: Tensor) -> None:
        """Add tokens: ``y`` is ``[tokens, outputs]``, ``x`` is ``[tokens, features]``."""
        if len(x) == 0:
            return
        product = y.float().T @ x.float()
        self.total = product if self.total is None else self.total.add_(product)
        # added up where it is: reading it would wait for a GPU at every batch
        self.target_total = _plus(self.target_total, _square(y))
        self.tokens += len(x)

    @property
    def target_square(self) -> float:
        """The sum of the targets' squares."""
        return 0.0 if self.target_total is None else float(self.target_total)

    def merge(self, other: CrossGram) -> None:
        """Add what another accumulator has seen; the sum is formed in float64."""
        if other.total is not None:
            if self.total is None:
                self.total = other.total.clone()
            else:
                self.total = (self.total.double() + other.total.double()).float()
        self.target_total = _plus(self.target_total, other.target_total)
        self.tokens += other.tokens

    def result(self) -> Tensor:
        """C in float32."""
        if self.total is None:
            raise CalibrationError("No calibration token reached the layer.")
        return self.total


class CosineImportance:
    """1 − mean over tokens of cos(before, after): how much a layer turns the stream (ShortGPT's BI)."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add tokens: both ``[tokens, features]``. Cosines are formed in float32 and added in float64."""
        a, b = before.float(), after.to(before.device).float()
        norms = torch.linalg.vector_norm(a, dim=-1).double() * torch.linalg.vector_norm(b, dim=-1).double()
        dots = torch.linalg.vecdot(a, b).double()
        # a zero vector has no direction: 0/0 is NaN here, and stays NaN in the result
        self.total = _plus(self.total, (dots / norms).sum())
        self.tokens += len(a)

    def merge(self, other: CosineImportance) -> None:
        """Add what another accumulator has seen."""
        self.total = _plus(self.total, other.total)
        self.tokens += other.tokens

    def result(self) -> float:
        """The importance: 0 for a layer that changes no direction; NaN where a cosine was undefined."""
        if self.total is None or self.tokens == 0:
            raise CalibrationError("No calibration token reached the layer.")
        return 1.0 - float(self.total) / self.tokens


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum of two numbers on a device, either of which may be missing."""
    if total is None or more is None:
        return more if total is None else total
    return total + more.to(total.device)


def _square(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm.square()


@contextmanager
def fast_products(dtype: torch.dtype) -> Iterator[None]:
    """Form float32 matrix products by bf16 units inside the block, if ``dtype`` is bf16; restored after."""
    if dtype != torch.bfloat16:
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing in the stubs
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def _nothing() -> Iterator[None]:
    yield
