"""Sizes are exact: what people write in decimal is what they get."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.pruning.sizes import (
    checked_layer_indices,
    exact,
    kept_by_expansion_rate,
    kept_by_percentage,
    kept_neurons_count,
    layers_by_percentage,
    rounded_to_divisor,
)


@pytest.mark.parametrize(
    ("size", "percentage", "removed"),
    [
        (100, 29, 29),  # int(29 / 100 * 100) is 28 in binary floating point
        (100, 57, 57),
        (1000, 0.7, 7),  # int(0.7 / 100 * 1000) is 6
        (1536, 20, 307),
        (3, 99.9, 2),
        (100, 0, 0),
        (10, 9.999, 0),
        (100, np.int64(29), 29),
    ],
)
def test_percentage_is_computed_without_float_surprises(size: int, percentage: float, removed: int) -> None:
    assert size - kept_by_percentage(size, percentage) == removed


@pytest.mark.parametrize("percentage", [-1, 100, 100.5, float("nan"), float("inf"), True, "x"])
def test_percentage_out_of_range_is_refused(percentage: float) -> None:
    with pytest.raises(InvalidOptionError):
        kept_by_percentage(100, percentage)


def test_every_percentage_of_every_size_agrees_with_integers() -> None:
    for size in range(1, 130):
        for tenths in range(0, 1000, 7):
            assert size - kept_by_percentage(size, tenths / 10) == tenths * size // 1000


@pytest.mark.parametrize(
    ("rate", "hidden", "kept"), [(140, 2048, 2867), (260, 576, 1498), (50, 5, 2), (70, 5, 4), (12.5, 8, 1)]
)
def test_expansion_rate_rounds_exactly_with_halves_to_even(rate: float, hidden: int, kept: int) -> None:
    assert kept_by_expansion_rate(10_000, hidden, rate) == kept


def test_expansion_rate_that_would_grow_the_layer_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="would increase the model size"):
        kept_by_expansion_rate(100, 32, 400)
    with pytest.raises(InvalidOptionError, match="leaves no neuron"):
        kept_by_expansion_rate(100, 32, 0.1)


@pytest.mark.parametrize(
    ("kept", "size", "divisor", "expected"),
    [
        (1229, 1536, 128, 1280),
        (1216, 1536, 128, 1280),  # exactly between 1152 and 1280: up
        (1215, 1536, 128, 1152),
        (3, 1536, 128, 128),  # never below one multiple
        (99, 100, 32, 96),  # never above the size
        (1530, 1536, 256, 1536),
    ],
)
def test_divisor_rounds_to_the_nearest_multiple(kept: int, size: int, divisor: int, expected: int) -> None:
    assert rounded_to_divisor(kept, size, divisor) == expected


def test_divisor_needs_a_size_and_a_layer_that_holds_one_multiple() -> None:
    with pytest.raises(InvalidOptionError, match="cannot be used alone"):
        kept_neurons_count(1536, 576, expansion_divisor=128)
    with pytest.raises(InvalidOptionError, match="larger than the layer"):
        rounded_to_divisor(50, 100, 128)
    with pytest.raises(InvalidOptionError, match="must be one of"):
        rounded_to_divisor(50, 100, 48)


def test_both_sizes_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="mutually exclusive"):
        kept_neurons_count(100, 32, pruning_percentage=20, expansion_rate=200)


def test_layers_by_percentage_is_exact_and_never_zero() -> None:
    assert layers_by_percentage(100, 29) == 29
    assert layers_by_percentage(32, 25.0) == 8
    with pytest.raises(InvalidOptionError, match="would remove 0 layers"):
        layers_by_percentage(6, 10)


def test_layer_indices_take_any_integers_but_no_bools() -> None:
    assert checked_layer_indices(np.array([5, 2]), 6) == (2, 5)
    assert checked_layer_indices(range(0, 6, 2), 6) == (0, 2, 4)
    assert all(type(index) is int for index in checked_layer_indices([np.int32(1)], 6))
    for wrong in ([0, True], [0, "5"], [1.0], "12", 3):
        with pytest.raises(TypeError):
            checked_layer_indices(wrong, 6)  # type: ignore[arg-type]


def test_layer_indices_may_be_a_tensor_of_integers() -> None:
    assert checked_layer_indices(torch.tensor([2, 0]), 4) == (0, 2)
    for wrong in (torch.tensor([True, False]), torch.tensor([1.0]), torch.tensor([[1], [2]])):
        with pytest.raises(TypeError, match="must be integers"):
            checked_layer_indices(wrong, 4)


def test_exact_reads_decimals_as_written() -> None:
    assert exact(0.1) * 10 == 1
