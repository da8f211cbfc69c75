"""Allocators meet the budget exactly, follow their rule, and stay in their bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.pruning.allocation import (
    budget_total,
    curve_widths,
    importance_widths,
    uniform_widths,
)
from optipfair_engine.pruning.targets import Target

SIZES = {0: 96, 1: 96, 2: 96, 3: 96}
IMPORTANCE = {0: 0.9, 1: 0.05, 2: 0.02, 3: 0.2}
CURVES = {layer: [slope * (i / 96) ** 2 for i in range(97)] for layer, slope in enumerate((4, 1, 1, 0.1))}


@given(total=st.integers(8, 384), divisor=st.sampled_from([1, 4, 32]), ratio=st.floats(0.01, 10))
def test_totals_are_met_and_never_exceeded(total: int, divisor: int, ratio: float) -> None:
    total = max(total, 4 * divisor)
    importance = {layer: value**ratio for layer, value in IMPORTANCE.items()}
    for widths in (
        uniform_widths(SIZES, total, divisor),
        importance_widths(SIZES, importance, total, divisor),
        curve_widths(SIZES, CURVES, total, divisor),
    ):
        assert total - divisor < sum(widths.values()) <= total
        assert all(divisor <= width <= 96 and width % divisor == 0 for width in widths.values())


def test_importance_follows_the_rule() -> None:
    logs = {layer: math.log(value) for layer, value in IMPORTANCE.items()}
    mean = sum(logs.values()) / 4
    sigma = math.sqrt(sum((v - mean) ** 2 for v in logs.values()) / 4)
    # z sums to zero over layers of equal size, so the budget needs no renormalisation here
    expected = {i: 96 * (1 - 0.25 * (1 - 0.25 * (logs[i] - mean) / sigma)) for i in SIZES}
    widths = importance_widths(SIZES, IMPORTANCE, 288)
    assert all(abs(widths[i] - expected[i]) <= 1 for i in SIZES)
    assert widths[0] > widths[3] > widths[1] > widths[2]


def test_equal_importance_is_uniform() -> None:
    assert importance_widths(SIZES, dict.fromkeys(SIZES, 0.1), 288) == dict.fromkeys(SIZES, 72)


def test_curves_lower_the_predicted_error_within_the_spread() -> None:
    widths = curve_widths(SIZES, CURVES, 288)

    def error(w: dict[int, int]) -> float:
        return sum(CURVES[i][96 - w[i]] for i in SIZES)

    assert error(widths) < error(uniform_widths(SIZES, 288))
    assert all(0.25 * 0.6 - 0.02 <= 1 - w / 96 <= 0.25 * 1.4 + 0.02 for w in widths.values())


def test_undefined_importance_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="undefined"):
        importance_widths(SIZES, {**IMPORTANCE, 2: math.nan}, 288)


def test_target_parameters_are_not_exceeded_and_nearly_met() -> None:
    costs = dict.fromkeys(SIZES, 48)
    total = budget_total(SIZES, costs, Target(90_000, 100_000, "parameters"))
    found = 100_000 - (384 - total) * 48
    assert 90_000 - 48 * 4 < found <= 90_000


def test_a_target_below_what_the_divisor_leaves_is_refused_with_what_would_stay() -> None:
    sizes, costs = {0: 256, 1: 256}, {0: 10, 1: 10}
    with pytest.raises(InvalidOptionError, match="at least 1280 bytes stay"):
        budget_total(sizes, costs, Target(1279, 5120, "bytes"), 64)
    assert uniform_widths(sizes, budget_total(sizes, costs, Target(1280, 5120, "bytes"), 64), 64) == {
        0: 64,
        1: 64,
    }


def test_widths_that_a_divisor_makes_too_many_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="with the divisor 64 at least 128 stay"):
        uniform_widths({0: 256, 1: 256}, 80, 64)


def test_impossible_targets_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="10 parameters can't be reached"):
        budget_total(SIZES, dict.fromkeys(SIZES, 48), Target(10, 100_000, "parameters"))
