"""A model stored in half precision, computed in float32, gives what it gives once it is cast to float32."""

from __future__ import annotations

import copy

import pytest
import torch

from optipfair_engine.checkpoints.reload import model_logits
from tests.numbers import assert_near
from tests.optipfair_engine.families.checks import TOKENS
from tests.optipfair_engine.families.zoo import FAMILIES, Family, build


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_float32_computation_is_that_of_the_model_in_float32(family: Family) -> None:
    check(family, torch.bfloat16)


@pytest.mark.parametrize(
    "family", {family.kind: family for family in FAMILIES}.values(), ids=lambda f: f.kind
)
def test_of_float16_too(family: Family) -> None:
    check(family, torch.float16)


def check(family: Family, dtype: torch.dtype) -> None:
    half = build(family).to(dtype)
    full = copy.deepcopy(half).float()
    before = {name: (p.dtype, p.data_ptr()) for name, p in half.named_parameters()}
    found = model_logits(half, TOKENS, "float32")
    assert found.dtype == torch.float32
    assert_near(found, model_logits(full, TOKENS))
    assert {name: (p.dtype, p.data_ptr()) for name, p in half.named_parameters()} == before
