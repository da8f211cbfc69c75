"""Guide, "Selective Layer Width Pruning": basics, combinations, statistics, errors, best practices."""

from __future__ import annotations

import pytest


def widths(model) -> list[int]:
    return [layer.mlp.up_proj.out_features for layer in model.model.layers]


def test_guide_basic_selective_width(run, blocks) -> None:
    (code,) = blocks("Basic Selective Width Pruning")
    assert widths(run(code)["pruned_model"]) == [384] + [288] * 30 + [384]


def test_guide_combining_with_other_features(run, blocks) -> None:
    (code,) = blocks("Combining with Other Features")
    found = widths(run(code)["pruned_model"])
    assert [i for i, size in enumerate(found) if size != 384] == [1, 3, 5, 7, 9]


def test_guide_selective_statistics(run, blocks, capsys) -> None:
    (code,) = blocks("Selective Pruning with Statistics")
    stats = run(code)["stats"]
    assert (stats["total_layers"], stats["pruned_layers"]) == (32, 5)
    assert "Unchanged layers: 27" in capsys.readouterr().out


def test_guide_error_handling_and_validation(run, blocks, capsys) -> None:
    (code,) = blocks("Error Handling and Validation")
    run(code)
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split(".")[0] for line in printed] == [
        "Error: layer_indices cannot be an empty list",
        "Error: Invalid layer indices: [999]",
        "Error: layer_indices contains duplicate values",
        "Error: All elements in layer_indices must be integers",
    ]


def test_guide_backward_compatibility(run, blocks) -> None:
    import torch

    (code,) = blocks("Backward Compatibility")
    first, second = code.strip().splitlines()[1:]
    one, two = run(first)["pruned_model"], run(second)["pruned_model"]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("number", range(4))
def test_guide_best_practices_for_selective_width(run, blocks, number: int) -> None:
    names = run(blocks("Best Practices for Selective Width Pruning")[number])
    found = widths(names.get("pruned_model") or names["alternating_pruned"])
    changed = [i for i, size in enumerate(found) if size != 384]
    expected = [list(range(1, 31)), None, [5, 10, 15, 20], list(range(0, 32, 2))][number]
    assert changed == (sorted(names["least_important"]) if expected is None else expected)
