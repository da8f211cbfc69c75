"""Guide, "Neuron Selection Methods": static, divisor, data-driven MAW, VOW, PON."""

from __future__ import annotations

import pytest

SECTION = "Neuron Selection Methods"


@pytest.mark.parametrize(
    ("number", "size"),
    [(0, 308), (1, 256), (2, 308), (3, 308), (4, 308)],
    ids=["static MAW", "expansion_divisor", "data-driven MAW", "VOW", "PON"],
)
def test_guide_neuron_selection(run, blocks, number: int, size: int) -> None:
    pruned = run(blocks(SECTION)[number])["pruned_model"]
    assert pruned.config.intermediate_size == size
    assert {layer.mlp.down_proj.in_features for layer in pruned.model.layers} == {size}
