from __future__ import annotations

import numpy as np
import pytest
import torch

from optipfair_engine.bias.analysis import NeuronRanking, analyze_pairs
from optipfair_engine.bias.statistics.significance import FEW_CLUSTERS

LAYER, NEURON = 2, 17
#: Activations are about one, and rounded as that; the edited neuron's are thousands, and rounded as those.
ROUNDED = {"rel": 1e-5, "abs": 1e-5}


def rank(model, tokenizer, pairs, **options):
    ranking = NeuronRanking(model, top=None)
    analyze_pairs(model, tokenizer, pairs, ranking=ranking, **options)
    return ranking.result().as_dict()


def react_to(model, tokenizer, word: str, other: str) -> None:
    """Make one neuron answer to ``word`` and not to ``other``, whatever the template."""
    seen: list[torch.Tensor] = []
    mlp = model.model.layers[LAYER].mlp
    handle = mlp.up_proj.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0, 1]))
    with torch.no_grad():
        for text in (word, other):
            model(**tokenizer(f"the {text} doctor walked home", return_tensors="pt"))
        handle.remove()
        direction = seen[0] - seen[1]
        direction = 20 * direction / direction.norm()
        mlp.gate_proj.weight[NEURON] = direction
        mlp.up_proj.weight[NEURON] = direction


@pytest.fixture
def edited(make_llama, tokenizer):
    model = make_llama(seed=3)
    react_to(model, tokenizer, "female", "male")
    return model


def test_a_neuron_edited_to_react_to_a_word_is_ranked_first_and_significant(
    edited, tokenizer, templated_pairs
) -> None:
    result = rank(edited, tokenizer, templated_pairs)
    best = result["neurons"][0]
    assert (best["layer"], best["neuron"]) == (LAYER, NEURON)
    assert best["significant"]
    assert best["mean_difference"] > 0  # second − first: it answers to the second prompt's word
    assert best["consistency"] == 1.0
    assert result["unit"] == "template"
    assert result["tested"] == 4 * 48


def test_a_shuffled_bias_is_not_significant(edited, tokenizer, templated_pairs) -> None:
    shuffled = [pair if i % 2 else pair[::-1] for i, pair in enumerate(templated_pairs)]
    assert rank(edited, tokenizer, shuffled)["significant"] == 0


def test_swapping_the_prompts_negates_every_signed_value(edited, tokenizer, templated_pairs) -> None:
    there = rank(edited, tokenizer, templated_pairs)["neurons"]
    back = {
        (n["layer"], n["neuron"]): n
        for n in rank(edited, tokenizer, [p[::-1] for p in templated_pairs])["neurons"]
    }
    for neuron in there:
        other = back[neuron["layer"], neuron["neuron"]]
        assert other["mean_difference"] == pytest.approx(-neuron["mean_difference"], **ROUNDED)
        assert other["output_effect"] == pytest.approx(-neuron["output_effect"], **ROUNDED)


def test_identical_pairs_move_no_neuron(edited, tokenizer, templated_pairs) -> None:
    result = rank(edited, tokenizer, [(first, first) for first, _ in templated_pairs])
    assert {neuron["mean_difference"] for neuron in result["neurons"]} == {0.0}
    assert result["significant"] == 0


def test_the_ranking_does_not_depend_on_batches(edited, tokenizer, templated_pairs) -> None:
    one = rank(edited, tokenizer, templated_pairs, token_budget=10**6)["neurons"]
    many = rank(edited, tokenizer, templated_pairs, token_budget=1)["neurons"]
    values = [{(n["layer"], n["neuron"]): n["mean_difference"] for n in side} for side in (one, many)]
    assert values[0] == pytest.approx(values[1], **ROUNDED)


def test_pairs_of_one_template_are_one_observation(edited, tokenizer, templated_pairs) -> None:
    more = [
        *templated_pairs,
        *[(a.replace("male", "young"), b.replace("female", "old")) for a, b in templated_pairs],
    ]
    result = rank(edited, tokenizer, more)
    assert result["units"] == 8


def test_too_few_templates_are_said_to_be_so(edited, tokenizer, templated_pairs) -> None:
    two = rank(edited, tokenizer, templated_pairs[:2])
    assert two["tested"] == 0
    assert two["neurons"][0]["q_value"] is None
    assert "not tested" in two["warnings"][0]
    attributes = [("male", "female"), ("young", "old"), ("white", "black")]
    one = [(f"the {a} man sat", f"the {b} man sat") for a, b in attributes]
    assert "too small" in rank(edited, tokenizer, one)["warnings"][0]
    assert FEW_CLUSTERS > 3


def test_the_effect_is_weighted_by_the_output_weights(edited, tokenizer, templated_pairs) -> None:
    result = rank(edited, tokenizer, templated_pairs)
    best = result["neurons"][0]
    norm = edited.model.layers[LAYER].mlp.down_proj.weight[:, NEURON].norm().item()
    assert best["output_effect"] == pytest.approx(best["mean_difference"] * norm, rel=1e-5)
    effects = [abs(n["output_effect"]) for n in result["neurons"] if n["significant"]]
    assert effects == sorted(effects, reverse=True)
    assert np.isfinite(effects).all()
