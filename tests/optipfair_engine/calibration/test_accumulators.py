"""Accumulators: batched equals whole, merged equals whole, and the numbers are the defined ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from optipfair_engine.calibration import CosineImportance, CrossGram, Gram, SquaredNorm
from optipfair_engine.errors import CalibrationError
from tests.numbers import assert_near

torch.manual_seed(1)
X = torch.randn(101, 12)
Y = torch.randn(101, 5)


def _value(accumulator: Any) -> torch.Tensor:
    return torch.as_tensor(accumulator.result())


@pytest.mark.parametrize(
    ("factory", "data"),
    [(SquaredNorm, (X,)), (Gram, (X,)), (CrossGram, (Y, X)), (CosineImportance, (X, X + 0.1))],
)
@pytest.mark.parametrize("cuts", [[1, 100], [50, 51], [7] * 14 + [3]])
def test_batched_and_merged_equal_whole(
    factory: Any, data: tuple[torch.Tensor, ...], cuts: list[int]
) -> None:
    whole, batched, left, right = factory(), factory(), factory(), factory()
    whole.update(*data)
    for number, parts in enumerate(zip(*(d.split(cuts) for d in data), strict=True)):
        batched.update(*parts)
        (left if number % 2 else right).update(*parts)
    left.merge(right)
    assert batched.tokens == left.tokens == whole.tokens == 101
    # an importance is 1 − a cosine, and as exact as the cosine
    scale = 1 if factory is CosineImportance else None
    assert_near(_value(batched), _value(whole), scale=scale)
    assert_near(_value(left), _value(whole), scale=scale)


def test_values_are_the_defined_ones() -> None:
    norm, gram, cross = SquaredNorm(), Gram(), CrossGram()
    norm.update(X)
    gram.update(X)
    cross.update(Y, X)
    assert_near(norm.result(), X.double().norm(dim=0), 1e-6)
    assert_near(gram.result(), X.T @ X)
    assert_near(cross.result(), Y.T @ X)
    assert_near(cross.target_square, Y.square().sum())


def test_bf16_products_are_as_exact_as_float32_ones_and_restore_the_setting() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    x = torch.randn(512, 64).bfloat16()
    fast, slow = Gram(), Gram(bf16_products=False)
    fast.update(x)
    slow.update(x)
    exact = x.double().T @ x.double()
    scale = exact.diagonal().mean()
    assert (fast.result() - exact).abs().max() / scale < 1e-5
    assert (slow.result() - exact).abs().max() / scale < 1e-5
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_importance_is_zero_for_the_same_direction_and_nan_for_none() -> None:
    same, undefined = CosineImportance(), CosineImportance()
    same.update(X, 3 * X)
    undefined.update(torch.cat([X, torch.zeros(1, 12)]), torch.cat([X, torch.ones(1, 12)]))
    assert same.result() == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(undefined.result())


@pytest.mark.parametrize("factory", [SquaredNorm, Gram, CrossGram, CosineImportance])
def test_nothing_seen_is_an_error(factory: Any) -> None:
    with pytest.raises(CalibrationError, match="No calibration token"):
        factory().result()


@pytest.mark.parametrize("features", [511, 513, 600])
def test_a_wide_gram_is_whole_symmetric_and_can_go_on_after_it_settled(features: int) -> None:
    x = torch.randn(40, features, generator=torch.Generator().manual_seed(features))
    gram, other = Gram(), Gram()
    gram.update(x[:10])
    gram.settle()
    first = gram.result()
    kept = first.clone()
    gram.update(x[10:20])
    other.update(x[20:])
    gram.merge(other)
    assert torch.equal(first, kept)
    assert torch.equal(gram.result(), gram.result().T)
    assert_near(gram.result(), x.T @ x)


def test_sums_of_single_numbers_stay_on_the_device_until_the_result() -> None:
    x = torch.empty(4, 8, device="meta")  # whose numbers can't be read
    importance, cross = CosineImportance(), CrossGram()
    for _ in range(2):
        importance.update(x, x)
        cross.update(x, x)
    importance.merge(importance)
    cross.merge(cross)
    assert (importance.tokens, cross.tokens) == (16, 16)
