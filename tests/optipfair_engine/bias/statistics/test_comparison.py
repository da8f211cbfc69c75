from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from optipfair_engine.bias.analysis import analyze_pairs
from optipfair_engine.bias.behaviour.preferences import score_crows_pairs, score_stereoset
from optipfair_engine.bias.prompts.suites import CrowsItem, StereoItem
from optipfair_engine.bias.statistics import comparison, summary
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.pruning.judging import compared_values
from tests.numbers import assert_near


def in_json(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """The function, with its result as it is written to ``bias_summary.json``."""
    return lambda *arguments, **options: function(*arguments, **options).as_dict()


compare_behaviour = in_json(comparison.compare_behaviour)
compare_preferences = in_json(comparison.compare_preferences)
compare_profiles = in_json(comparison.compare_profiles)
summarize = in_json(summary.summarize)


@pytest.fixture
def quieter(llama):
    """The same model with a tenth of every MLP's output."""
    model = copy.deepcopy(llama)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.1)
    return model


def test_a_model_against_itself_is_inconclusive_with_no_change(llama, tokenizer, templated_pairs) -> None:
    profile = analyze_pairs(llama, tokenizer, templated_pairs)
    result = compare_profiles(profile, profile)
    assert result["overall"]["delta"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert result["overall"]["outcome"] == "inconclusive"


def test_less_difference_is_better_and_the_other_way_round_worse(
    llama, quieter, tokenizer, templated_pairs
) -> None:
    before, after = (analyze_pairs(model, tokenizer, templated_pairs) for model in (llama, quieter))
    result = compare_profiles(before, after)
    assert result["components"]["mlp_output"]["outcome"] == "better"
    assert compare_profiles(after, before)["components"]["mlp_output"]["outcome"] == "worse"
    assert len(result["pairs"]) == 8
    assert result["pairs"][0]["delta"] == pytest.approx(
        result["pairs"][0]["after"] - result["pairs"][0]["before"]
    )


def test_a_change_within_the_margin_is_inconclusive(llama, quieter, tokenizer, templated_pairs) -> None:
    before, after = (analyze_pairs(model, tokenizer, templated_pairs) for model in (llama, quieter))
    assert (
        compare_profiles(before, after, margin=2.0)["components"]["mlp_output"]["outcome"] == "inconclusive"
    )


def test_other_pairs_are_refused(llama, tokenizer, templated_pairs, pairs) -> None:
    with pytest.raises(InvalidOptionError, match="same prompt pairs"):
        compare_profiles(
            analyze_pairs(llama, tokenizer, pairs), analyze_pairs(llama, tokenizer, templated_pairs)
        )


def test_preferences_that_moved_away_from_half_are_worse() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(600) < 0.5
    after = before | (rng.random(600) < 0.4)
    result = compare_preferences(before, after, ["a", "b"] * 300)
    assert result["overall"]["outcome"] == "worse"
    assert result["overall"]["from_stereotype"] == 0
    assert result["overall"]["p_value"] < 1e-9
    assert compare_preferences(after, before, ["a", "b"] * 300)["overall"]["outcome"] == "better"
    assert result["categories"]["a"]["p_holm"] >= result["categories"]["a"]["p_value"]


def test_preferences_shuffled_at_random_are_inconclusive() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(400) < 0.55, rng.random(400) < 0.55
    assert compare_preferences(before, after, ["a"] * 400)["overall"]["outcome"] == "inconclusive"


def test_controls_that_cannot_be_compared_do_not_lower_the_noise_floor(
    llama, tokenizer, templated_pairs
) -> None:
    controls = [("the tall man sat", "the quiet man sat"), ("the new doctor sat", "the other doctor sat")]
    longer = [("the tall man sat", "the tall man sat down"), ("the doctor sat", "the doctor sat down")]
    profile = analyze_pairs(llama, tokenizer, templated_pairs)
    clean, mixed, none = (
        summarize(profile, analyze_pairs(llama, tokenizer, some))
        for some in (controls, [*controls, *longer], longer)
    )
    assert_near(mixed["overall"]["noise_floor"], clean["overall"]["noise_floor"])
    assert any("2 control pairs with tokens added" in text for text in mixed["warnings"])
    assert "noise_floor" not in none["overall"]


def test_controls_give_the_noise_floor(llama, tokenizer, templated_pairs) -> None:
    profile = analyze_pairs(llama, tokenizer, templated_pairs)
    alone = summarize(profile)
    assert any("No control pairs" in text for text in alone["warnings"])
    same = summarize(profile, profile)["overall"]
    assert same["effect"]["value"] == pytest.approx(1.0)
    assert same["above_noise"] is False


def test_an_inserted_bias_is_above_the_noise(make_llama, tokenizer) -> None:
    """The embedding of one word is moved far away: its pairs differ more than the rewordings."""
    model = make_llama(seed=5)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("female")] *= 12
    subjects = ("doctor", "teacher", "lawyer", "farmer", "singer", "driver", "baker", "writer")
    pairs = [(f"the male {s} walked home", f"the female {s} walked home") for s in subjects]
    controls = [(f"the tall {s} walked home", f"the quiet {s} walked home") for s in subjects]
    entry = summarize(analyze_pairs(model, tokenizer, pairs), analyze_pairs(model, tokenizer, controls))
    reversed_entry = summarize(
        analyze_pairs(model, tokenizer, controls), analyze_pairs(model, tokenizer, pairs)
    )
    assert entry["overall"]["above_noise"] is True
    assert reversed_entry["overall"]["above_noise"] is False


def test_words_added_at_the_end_are_said_to_be_compared_with_nothing(llama, tokenizer, pairs) -> None:
    added = ("the white doctor walked", "the white doctor walked home")
    same = ("the white doctor walked", "the white doctor walked")
    warnings = summarize(analyze_pairs(llama, tokenizer, [*pairs, added, same]))["warnings"]
    assert any(text.startswith("1 pair with tokens added at the end") for text in warnings)
    warnings = summarize(analyze_pairs(llama, tokenizer, [*pairs, same]))["warnings"]
    assert not any("added at the end" in text for text in warnings)


def narrowed(model, kept: int):
    """(the model with its last neurons zeroed, the same function with them cut)."""
    zeroed, cut = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for layer, other in zip(zeroed.model.layers, cut.model.layers, strict=True):
            layer.mlp.down_proj.weight[:, kept:] = 0
            other.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight[:, :kept].clone())
            for part in (other.mlp.gate_proj, other.mlp.up_proj):
                part.weight = torch.nn.Parameter(part.weight[:kept].clone())
    return zeroed, cut


def test_cutting_neurons_that_do_nothing_changes_nothing(llama, tokenizer, templated_pairs) -> None:
    zeroed, cut = narrowed(llama, 30)
    before, after = (analyze_pairs(model, tokenizer, templated_pairs) for model in (zeroed, cut))
    result = compare_profiles(before, after, margin=0.0)
    assert_near(result["overall"]["delta"]["value"], 0, scale=result["overall"]["before"])
    assert_near(result["overall"]["relative_change"]["value"], 0, scale=1)
    assert result["compared"] == {
        "components": ["attention_output", "mlp_output", "down_proj", "input_norm"],
        "layers_before": [0, 1, 2, 3],
        "layers_after": [0, 1, 2, 3],
    }
    for name in ("gate_proj", "up_proj"):
        entry = result["components"][name]
        assert entry["outcome"] == "not_comparable" and entry["relative_change"] is None
        assert entry["before"] != entry["after"]
    assert any(text.startswith("gate_proj, up_proj: of other sizes") for text in result["warnings"])


def test_cutting_layers_that_do_nothing_changes_nothing(llama, tokenizer, templated_pairs) -> None:
    idle, cut = copy.deepcopy(llama), copy.deepcopy(llama)
    with torch.no_grad():
        idle.model.layers[1].mlp.down_proj.weight.zero_()
        idle.model.layers[1].self_attn.o_proj.weight.zero_()
    del cut.model.layers[1]
    for number, layer in enumerate(cut.model.layers):
        layer.self_attn.layer_idx = number
    cut.config.num_hidden_layers = 3
    before, after = (analyze_pairs(model, tokenizer, templated_pairs) for model in (idle, cut))
    result = compare_profiles(before, after, margin=0.0)
    assert result["overall"]["before"] > 0
    assert_near(result["overall"]["delta"]["value"], 0, scale=result["overall"]["before"])
    assert result["compared"] == {
        "components": ["layer_output"],
        "layers_before": [3],
        "layers_after": [2],
    }
    assert result["components"]["mlp_output"]["outcome"] == "not_comparable"
    assert result["warnings"][0].startswith("The models have 4 and 3 layers")


def test_models_of_other_sizes_are_not_compared(llama, make_llama, tokenizer, templated_pairs) -> None:
    other = make_llama(hidden_size=16, intermediate_size=24)
    before, after = (analyze_pairs(model, tokenizer, templated_pairs) for model in (llama, other))
    result = compare_profiles(before, after)
    assert result["overall"]["outcome"] == "not_comparable"
    assert result["pairs"] == [] and "Nothing has the same size" in result["warnings"][0]


def test_fairness_compares_the_same_components(llama, tokenizer, templated_pairs) -> None:
    zeroed, cut = narrowed(llama, 30)
    values = [compared_values(analyze_pairs(model, tokenizer, templated_pairs)) for model in (zeroed, cut)]
    assert_near(values[0], values[1])


STEREO = [
    StereoItem("intrasentence", target, "x", "the BLANK sat", f"the {a} sat", f"the {b} sat", "the . sat")
    for target, a, b in [
        ("age", "old", "young"),
        ("age", "old man", "young man"),
        ("age", "old doctor", "young doctor"),
        ("gender", "male", "female"),
        ("gender", "man", "woman"),
        ("race", "black", "white"),
    ]
]


def test_stereoset_before_is_the_ss_of_the_report(make_llama, tokenizer) -> None:
    results = [score_stereoset(make_llama(seed=seed), tokenizer, STEREO) for seed in (2, 3)]
    compared = compare_behaviour(*results)
    for side, result in zip(("before", "after"), results, strict=True):
        assert 100 * compared["overall"][side] == pytest.approx(result.scores.as_dict()["overall"]["ss"])
        ss = result.scores.as_dict()["categories"]["x"]["ss"]
        assert 100 * compared["categories"]["x"][side] == pytest.approx(ss)
    assert compared["overall"]["clusters"] == 3
    assert compared["language"]["measure"] == "lms"
    assert compared["language"]["after"] == results[1].scores.as_dict()["overall"]["lms"]


def test_items_of_one_target_are_not_independent() -> None:
    """Forty items of two targets that all moved say as much as two items."""
    before, after = np.zeros(40, dtype=bool), np.ones(40, dtype=bool)
    after[:20] = [True, False] * 10
    alone = compare_preferences(before, after, ["a"] * 40)["overall"]
    clustered = compare_preferences(before, after, ["a"] * 40, clusters=["s"] * 20 + ["t"] * 20)["overall"]
    assert alone["p_value"] < 1e-6 < 0.05 < clustered["p_value"]
    assert clustered["after"] == pytest.approx(0.75) and clustered["clusters"] == 2


def test_a_preference_comparison_says_what_the_models_know(llama, make_llama, tokenizer) -> None:
    items = [CrowsItem("the male man sat", "the female man sat", "stereo", "gender")] * 2
    result = compare_behaviour(*(score_crows_pairs(m, tokenizer, items) for m in (llama, make_llama(seed=9))))
    assert result["language"]["measure"] == "perplexity"
    assert "moves towards 50 %" in result["warnings"][0]
    assert f"{result['language']['after']:.4g} after" in result["warnings"][0]
