"""Which rows and columns a kept neuron or head means: said once, for memory and for disk."""

from __future__ import annotations

import pytest
import torch

from optipfair_engine.architectures.rows import (
    check_groups,
    gate_of,
    kept_of_attention,
    kept_of_mlp,
    kv_heads_of_qkv,
    up_of,
)

HIDDEN, WIDE = 6, 5


@pytest.mark.parametrize("kind", ["glu", "plain"])
def test_a_neuron_is_a_row_of_each_separate_projection_and_a_column_of_down(kind) -> None:
    kept = kept_of_mlp(kind, torch.tensor([0, 3]), WIDE)
    assert {role: (axis, rows.tolist()) for role, (axis, rows) in kept.items()} == {
        "gate": ("outputs", [0, 3]),
        "up": ("outputs", [0, 3]),
        "down": ("inputs", [0, 3]),
    }


def test_a_fused_tensor_keeps_the_gate_and_up_of_the_same_neurons() -> None:
    gate, up, x = torch.randn(WIDE, HIDDEN), torch.randn(WIDE, HIDDEN), torch.randn(HIDDEN)
    neurons = torch.tensor([1, 4])
    fused = torch.cat((gate, up))
    kept = fused[kept_of_mlp("fused_glu", neurons, WIDE)["up"].indices]
    assert torch.equal(gate_of(kept, 2), gate[neurons])
    assert torch.equal(up_of("fused_glu", kept, 2), up[neurons])
    assert torch.equal(gate_of(fused, WIDE) @ x, gate @ x)


def test_a_grouped_tensor_keeps_what_separate_ones_would() -> None:
    heads, groups, size = 4, 2, 3
    query, key, value = (torch.randn(n * size, HIDDEN) for n in (heads, groups, groups))
    kept = kept_of_attention(
        torch.tensor([2, 3]), torch.tensor([1]), num_heads=heads, num_key_value_heads=groups, head_dim=size
    )
    separate = torch.cat(
        [weight[kept[role].indices] for role, weight in {"query": query, "key": key, "value": value}.items()]
    )
    assert torch.equal(torch.cat((query, key, value))[kept["qkv"].indices], separate)
    assert kept["query"].indices.tolist() == list(range(2 * size, 4 * size))
    assert kept["output"] == ("inputs", kept["query"].indices)
    assert kv_heads_of_qkv((heads + 2 * groups) * size, heads, size) == groups


@pytest.mark.parametrize(
    ("query", "kv", "told"),
    [
        ([0, 1], [0, 1], "needs the same number"),  # a group that keeps no query head
        ([0, 2, 3], [0, 1], "needs the same number"),
        ([0, 2], [0], "no other query head may stay"),
        ([0, 0], [0], "distinct"),
        ([0], [2], "in \\[0, 2\\)"),
        ([], [], "at least one of the 4 query heads"),
    ],
)
def test_unequal_groups_are_refused(query, kv, told) -> None:
    with pytest.raises(ValueError, match=told):
        check_groups(torch.tensor(query), torch.tensor(kv), num_heads=4, num_key_value_heads=2)


def test_equal_groups_come_back_sorted() -> None:
    query, kv = check_groups(torch.tensor([3, 0]), torch.tensor([1, 0]), num_heads=4, num_key_value_heads=2)
    assert (query.tolist(), kv.tolist()) == ([0, 3], [0, 1])
