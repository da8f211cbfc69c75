"""Depth pruning: which layers go, exactly, and refusals before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.pruning import prune_model
from optipfair_engine.pruning.depth.choice import least_important, select_layers


def select(options: dict[str, Any]) -> tuple[int, ...]:
    asked = {name: value for name, value in options.items() if name != "layer_selection_method"}
    return select_layers(12, asked, options.get("layer_selection_method", "last"))


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({"num_layers_to_remove": 3}, (9, 10, 11)),
        ({"num_layers_to_remove": 3, "layer_selection_method": "first"}, (0, 1, 2)),
        ({"depth_pruning_percentage": 25.0}, (9, 10, 11)),
        ({"depth_pruning_percentage": 24.9}, (10, 11)),
        ({"layer_indices": [8, 2, 5]}, (2, 5, 8)),
        ({"layer_indices": [8, 2, 5], "layer_selection_method": "custom"}, (2, 5, 8)),
    ],
)
def test_layers_are_selected_exactly(options: dict[str, Any], removed: tuple[int, ...]) -> None:
    assert select(options) == removed


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Must specify one of"),
        ({"num_layers_to_remove": 1, "depth_pruning_percentage": 10}, "mutually exclusive"),
        ({"num_layers_to_remove": 0}, "positive integer"),
        ({"num_layers_to_remove": True}, "positive integer"),
        ({"num_layers_to_remove": 12}, "Cannot remove 12 layers"),
        ({"depth_pruning_percentage": 100}, "below 100"),
        ({"depth_pruning_percentage": 1}, "would remove 0 layers"),
        ({"layer_indices": list(range(12))}, "Cannot remove 12 layers"),
        ({"layer_indices": [12]}, "Invalid layer indices"),
        ({"layer_selection_method": "custom", "num_layers_to_remove": 2}, "needs layer_indices"),
        ({"layer_selection_method": "middle", "num_layers_to_remove": 2}, "must be one of"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOptionError, match=text):
        select(options)


def test_the_least_important_layers_are_chosen_with_ties_to_the_lower() -> None:
    assert least_important({0: 0.5, 1: 0.1, 2: 0.3, 3: 0.1, 4: 0.1}, 2) == (1, 3)
    with pytest.raises(InvalidOptionError, match=r"\[1\] is undefined"):
        least_important({0: 0.5, 1: float("nan")}, 1)


def test_depth_stats_have_the_guides_keys(llama) -> None:
    pruned, stats = prune_model(
        llama, "DEPTH", num_layers_to_remove=2, return_stats=True, show_progress=False
    )
    per_layer = sum(p.numel() for p in llama.model.layers[0].parameters())
    assert stats["reduction"] == 2 * per_layer
    assert (stats["original_layer_count"], stats["final_layer_count"], stats["layers_removed"]) == (6, 4, 2)
    assert stats["layer_reduction_percentage"] == pytest.approx(100 / 3)
    assert len(pruned.model.layers) == 4 and len(llama.model.layers) == 6


def test_width_options_do_not_go_with_depth(llama) -> None:
    for option in ({"expansion_rate": 200}, {"expansion_divisor": 32}, {"pruning_percentage": 20}):
        with pytest.raises(InvalidOptionError, match="can't be used with pruning_type DEPTH"):
            prune_model(llama, "DEPTH", num_layers_to_remove=1, show_progress=False, **option)
    with pytest.raises(InvalidOptionError, match="can't be used with pruning_type MLP_GLU"):
        prune_model(llama, num_layers_to_remove=1, show_progress=False)
