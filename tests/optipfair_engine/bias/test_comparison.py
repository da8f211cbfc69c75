from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from optipfair_engine.bias.analysis import analyze_pairs
from optipfair_engine.bias.comparison import compare_preferences, compare_profiles
from optipfair_engine.bias.summary import summarize
from optipfair_engine.errors import InvalidOptionError


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
