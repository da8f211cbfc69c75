from __future__ import annotations

import json

import pytest

from optipfair_engine.calibration import calibration_from_texts
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.pruning.fairness import fair_plan, flat_metrics, neuron_causes
from tests.optipfair_engine.bias.conftest import WORDS

#: One neuron of the layer's 48.
ONE = 100 / 48 + 0.01


@pytest.fixture(scope="module")
def calibration(tokenizer):
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    return calibration_from_texts(texts, tokenizer, max_length=16, num_samples=32, batch_size=8)


def _plan(edited, tokenizer, pairs, calibration, by: str):
    options = PruneOptions(pruning_percentage=ONE, layer_indices=[edited.layer])
    made = fair_plan(edited.model, tokenizer, pairs, options, calibration, weight=100.0, by=by, draws=3)
    kept = made.calibrated.plan.kept_neurons[edited.layer]
    (gone,) = set(range(48)) - set(kept)
    return gone, made


def test_by_effect_the_neuron_goes_that_causes_and_held_out_bias_with_it(
    edited, tokenizer, templated_pairs, calibration
) -> None:
    gone, made = _plan(edited, tokenizer, templated_pairs, calibration, "effect")
    assert gone == edited.causing
    tokens = made.report["next_tokens"]
    assert made.report["outcome"] == tokens["outcome"] == "better"
    assert tokens["random_draws_beaten"] == 3
    assert tokens["against_dense"]["high"] < 0
    assert tokens["difference"]["fair"] < tokens["difference"]["dense"] * 0.7
    assert made.calibrated.plan.provenance.to_json()["fairness"]["score"].endswith("rank(effect)")
    metrics = flat_metrics(made.report)
    assert metrics["next_token_change"] == tokens["against_dense"]["value"]
    assert metrics["bias_change"] == made.report["against_dense"]["value"]
    json.dumps(made.report, allow_nan=False)


def test_by_reaction_it_stays_where_another_reacts_more(
    edited, tokenizer, templated_pairs, calibration
) -> None:
    gone, made = _plan(edited, tokenizer, templated_pairs, calibration, "reaction")
    assert gone == edited.reacting
    assert "next_tokens" not in made.report
    assert "next_token_change" not in flat_metrics(made.report)


def test_neurons_that_work_against_the_difference_are_no_bias(edited, tokenizer, templated_pairs) -> None:
    from optipfair_engine.bias.cause.patching import patch_pairs

    bias = neuron_causes(edited.model, tokenizer, templated_pairs)
    against = [u for u in patch_pairs(edited.model, tokenizer, templated_pairs).patched if u.effect.value < 0]
    assert against
    assert not any(bias[unit.layer][unit.index] for unit in against)
    assert int(bias[edited.layer].argmax()) == edited.causing


def test_a_model_that_continues_nothing_has_no_effects(tokenizer, templated_pairs) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes))
    with pytest.raises(UnsupportedModelError, match="sees the words"):
        neuron_causes(model, tokenizer, templated_pairs)
