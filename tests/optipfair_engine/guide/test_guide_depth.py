"""Guide, "Layer Selection Methods for Depth Pruning": last, first, custom."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (0, list(range(29))),
        (1, list(range(3, 32))),
        (2, [i for i in range(32) if i not in (2, 5, 8)]),
    ],
    ids=["last", "first", "custom"],
)
def test_guide_depth(run, blocks, model, number: int, kept: list[int]) -> None:
    pruned = run(blocks("Layer Selection Methods for Depth Pruning")[number])["pruned_model"]
    assert pruned.config.num_hidden_layers == 29
    for layer, original in zip(pruned.model.layers, kept, strict=True):
        weight = model.model.layers[original].mlp.up_proj.weight
        assert torch.equal(layer.mlp.up_proj.weight, weight)
