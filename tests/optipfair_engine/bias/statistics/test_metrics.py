from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from optipfair_engine.bias import calculate_bias_metrics, get_activation_pairs
from optipfair_engine.bias.statistics.metrics import merge_moments, moments


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, float):
        yield value


@pytest.fixture
def sides():
    torch.manual_seed(0)
    keys = [f"{kind}_layer_{i}" for kind in ("mlp_output", "gate_proj") for i in range(3)]
    return ({key: torch.randn(5, 8) for key in keys}, {key: torch.randn(5, 8) for key in keys})


def test_keys_and_values_are_the_guides(sides) -> None:
    metrics = calculate_bias_metrics(*sides)
    difference = (sides[0]["gate_proj_layer_1"] - sides[1]["gate_proj_layer_1"]).double().abs().mean(dim=1)
    layer = metrics["layer_metrics"]["gate_proj_layer_1"]
    assert layer["mean_difference"] == pytest.approx(difference.mean().item())
    assert layer["max_difference"] == pytest.approx(difference.max().item())
    assert layer["min_difference"] == pytest.approx(difference.min().item())
    assert layer["std_difference"] == pytest.approx(difference.std().item())
    assert layer["l1_norm"] == pytest.approx(difference.norm(p=1).item())
    assert layer["l2_norm"] == pytest.approx(difference.norm(p=2).item())
    progression = metrics["component_metrics"]["mlp_output"]["progression_metrics"]
    first, last = (metrics["layer_metrics"][f"mlp_output_layer_{i}"]["mean_difference"] for i in (0, 2))
    assert progression["first_to_last_ratio"] == pytest.approx(last / first)
    assert progression["is_increasing"] == (last > first)
    assert metrics["component_metrics"]["gate_proj"]["num_layers"] == 3
    assert metrics["overall_metrics"]["total_layers"] == 6


def test_a_component_is_all_its_positions_together(sides) -> None:
    metrics = calculate_bias_metrics(*sides)
    keys = [key for key in sides[0] if "gate" in key]
    every = torch.cat([(sides[0][key] - sides[1][key]).double().abs().mean(dim=1) for key in keys])
    component = metrics["component_metrics"]["gate_proj"]
    assert component["mean_difference"] == pytest.approx(every.mean().item())
    assert component["std_difference"] == pytest.approx(every.std().item())
    assert component["l2_norm"] == pytest.approx(every.norm().item())


def test_identical_sides_give_zero_everywhere_in_strict_json(sides) -> None:
    metrics = calculate_bias_metrics(sides[0], sides[0])
    ratios = ("first_to_last_ratio", "max_to_first_ratio")
    text = json.dumps(metrics, allow_nan=False)
    for component in metrics["component_metrics"].values():
        for name in ratios:
            assert component["progression_metrics"].pop(name) == 1.0
    metrics.pop("alignment")
    assert set(leaves(metrics)) == {0.0}
    assert "NaN" not in text


def test_identical_prompts_give_zero_everywhere(llama, tokenizer) -> None:
    sides = get_activation_pairs(llama, tokenizer, "the old man sat down", "the old man sat down")
    overall = calculate_bias_metrics(*sides)["overall_metrics"]
    assert overall["max_difference"] == 0.0
    assert overall["from_first_difference"]["max_difference"] == 0.0


def test_plain_dictionaries_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="5 positions on one side and 6"):
        calculate_bias_metrics(
            {"mlp_output_layer_0": torch.ones(5, 2)}, {"mlp_output_layer_0": torch.ones(6, 2)}
        )
    with pytest.raises(ValueError, match="no layer in common"):
        calculate_bias_metrics({"a_layer_0": torch.ones(5, 2)}, {"b_layer_0": torch.ones(5, 2)})


def test_half_precision_is_compared_in_float32() -> None:
    first = {"mlp_output_layer_0": torch.full((2, 4), 60000.0, dtype=torch.float16)}
    second = {"mlp_output_layer_0": torch.full((2, 4), -60000.0, dtype=torch.float16)}
    assert calculate_bias_metrics(first, second)["overall_metrics"]["mean_difference"] == pytest.approx(
        120000, rel=1e-3
    )


def test_one_tensor_under_two_names_counts_once_overall() -> None:
    first = {"down_proj_layer_0": torch.ones(2, 4), "gate_proj_layer_0": torch.ones(2, 4)}
    second = {"down_proj_layer_0": torch.zeros(2, 4), "gate_proj_layer_0": torch.ones(2, 4)}
    once = calculate_bias_metrics(first, second)["overall_metrics"]["mean_difference"]
    first["mlp_output_layer_0"], second["mlp_output_layer_0"] = torch.ones(2, 4), torch.zeros(2, 4)
    metrics = calculate_bias_metrics(first, second)
    assert metrics["overall_metrics"]["mean_difference"] == once == 0.5
    assert metrics["layer_metrics"]["mlp_output_layer_0"]["mean_difference"] == 1.0


def test_merged_moments_are_those_of_all_values() -> None:
    values = np.random.default_rng(0).normal(size=30)
    merged = merge_moments(np.stack([moments(values[:4]), moments(values[4:4]), moments(values[4:])]))
    assert merged == pytest.approx(moments(values))
