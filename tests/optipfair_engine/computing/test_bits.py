"""What NumPy reads off the bits of floats is what torch computes from the floats."""

from __future__ import annotations

import pytest
import torch

from optipfair_engine.computing.bits import BLOCK, bits_are_finite, row_ranges
from optipfair_engine.pruning.width.scores import peak_to_peak

DTYPES = ["bfloat16", "float16", "float32"]


def bits_of(tensor: torch.Tensor):
    integer = {2: torch.int16, 4: torch.int32}[tensor.itemsize]
    return tensor.view(integer).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (3, BLOCK + 5)])
def test_ranges_of_rows_are_torchs_to_the_bit(dtype: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    for rows in (
        weight,
        weight.abs(),
        -weight.abs() - 1,
        torch.zeros_like(weight),
        -torch.zeros_like(weight),
    ):
        assert torch.equal(torch.from_numpy(row_ranges(bits_of(rows), dtype)), peak_to_peak(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_found_and_gives_no_range(dtype: str, value: float) -> None:
    weight = torch.randn(4, 9).to(getattr(torch, dtype))
    assert bits_are_finite(bits_of(weight), dtype)
    weight[2, 3] = value
    assert not bits_are_finite(bits_of(weight), dtype)
    found = torch.from_numpy(row_ranges(bits_of(weight), dtype)).isfinite()
    assert found.tolist() == [True, True, False, True]
