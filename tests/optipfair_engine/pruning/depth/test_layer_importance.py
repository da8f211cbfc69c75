"""Layer importance is one minus the token-weighted mean cosine, whatever the batching, padding or mode."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from optipfair_engine.computing.asked import computing
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.pruning import analyze_layer_importance


def reference(model, batches) -> dict[int, float]:
    """From the hidden states that transformers returns, in float64."""
    layers = len(model.model.layers)
    totals, tokens = [0.0] * layers, 0
    for batch in batches:
        with torch.no_grad():
            states = _layer_states(model, batch)
        mask = batch["attention_mask"].bool()
        tokens += int(mask.sum())
        for i, (before, after) in enumerate(states):
            totals[i] += float(cosine_similarity(before[mask].double(), after[mask].double(), dim=-1).sum())
    return {i: 1 - total / tokens for i, total in enumerate(totals)}


def _layer_states(model, batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _m, args, out: states.append((args[0], out)))
        for layer in model.model.layers
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return states


def test_scores_are_token_weighted_over_unmasked_tokens(llama, batches) -> None:
    batches.append(
        {"input_ids": torch.arange(3)[None], "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    )
    found = analyze_layer_importance(llama, batches, show_progress=False)
    assert found == pytest.approx(reference(llama, batches), abs=1e-6)
    assert list(found) == list(range(6))


def test_scores_do_not_depend_on_batching_or_padding(llama, batches) -> None:
    singles = [
        {"input_ids": ids[mask.bool()][None]}
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    expected = analyze_layer_importance(llama, batches, show_progress=False)
    assert analyze_layer_importance(llama, singles, show_progress=False) == pytest.approx(expected, abs=1e-6)


def test_low_precision_models_are_scored_in_float32(llama, batches) -> None:
    """The cosines are; the passes too where asked for, and otherwise in what the processor is fast in."""
    model = llama.to(torch.bfloat16)
    with computing("checkpoint"):
        found = analyze_layer_importance(model, batches, show_progress=False)
    assert found == pytest.approx(reference(model, batches), abs=1e-6)
    with computing("float32"):
        found = analyze_layer_importance(model, batches, show_progress=False)
    assert found == pytest.approx(reference(copy.deepcopy(model).float(), batches), abs=1e-6)


def test_dropout_is_off_and_the_mode_is_restored(llama_of, batches) -> None:
    model = llama_of(attention_dropout=0.5)
    expected = analyze_layer_importance(model, batches, show_progress=False)
    model.train()
    model.model.layers[2].eval()
    assert analyze_layer_importance(model, batches, show_progress=False) == expected
    assert model.training and not model.model.layers[2].training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_undefined_score_is_nan_and_never_zero(llama, batches) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight.zero_()  # the first layer's input has no direction
    scores = analyze_layer_importance(llama, batches, show_progress=False)
    assert math.isnan(scores[0])


def test_no_token_is_an_error(llama, batches) -> None:
    masked = [{**batches[0], "attention_mask": torch.zeros(4, 16, dtype=torch.int64)}]
    for loader in ([], masked):
        with pytest.raises(CalibrationError):
            analyze_layer_importance(llama, loader, show_progress=False)


@pytest.mark.parametrize("tensors", [False, True])
def test_the_datasets_map_recipe_works_with_lists_and_tensors(llama, tensors: bool) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"sample {i}" for i in range(6)]}

    def tokenize(examples: dict[str, list[str]]) -> dict[str, Any]:
        ids = [[ord(c) % 128 for c in text.ljust(12)] for text in examples["text"]]
        mask = [[1] * len(text) + [0] * (12 - len(text)) for text in examples["text"]]
        return {"input_ids": ids, "attention_mask": mask}

    mapped = datasets.Dataset.from_dict(rows).map(tokenize, batched=True)
    dataset = mapped.with_format("torch") if tensors else mapped
    found = analyze_layer_importance(llama, DataLoader(dataset, batch_size=4), show_progress=False)
    encoded = {key: torch.tensor(value) for key, value in tokenize(rows).items()}
    assert found == pytest.approx(reference(llama, [encoded]), abs=1e-6)


def test_both_stacks_of_t5_and_bert_are_scored(batches) -> None:
    config = T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=4, num_heads=4
    )
    t5 = T5ForConditionalGeneration(config)
    bert = BertModel(BertConfig(vocab_size=128, hidden_size=32, num_hidden_layers=3, num_attention_heads=4))
    assert len(analyze_layer_importance(t5, batches, "encoder.block", False)) == 3
    assert len(analyze_layer_importance(t5, batches, "decoder.block", False)) == 4
    assert len(analyze_layer_importance(bert, batches, show_progress=False)) == 3


def test_layers_path_is_followed_or_refused(gpt2, batches) -> None:
    found = analyze_layer_importance(gpt2, batches, layers_path="transformer.h", show_progress=False)
    assert found == analyze_layer_importance(gpt2, batches, show_progress=False)
    with pytest.raises(UnsupportedModelError, match=r"transformer\.layers"):
        analyze_layer_importance(gpt2, batches, layers_path="transformer.layers", show_progress=False)
