"""Guide, "Layer Importance Analysis"."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from tests.tiny import tiny_model


@pytest.fixture
def gpt2(tokenizer) -> PreTrainedModel:
    return tiny_model("gpt2", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1)


def test_guide_basic_layer_analysis(run, blocks, local_data, capsys) -> None:
    (code,) = blocks("Basic Layer Analysis")
    scores = run(code)["importance_scores"]
    assert list(scores) == list(range(32))
    assert all(0 < score < 2 for score in scores.values())
    assert str(scores) in capsys.readouterr().out


def test_guide_multi_architecture_support(run, blocks, gpt2) -> None:
    (code,) = blocks("Multi-Architecture Support")
    assert len(run(code, model=gpt2)["importance_scores"]) == 4


def test_guide_integration_with_depth_pruning(run, blocks) -> None:
    (code,) = blocks("Integration with Depth Pruning")
    names = run(code)
    assert names["pruned_model"].config.num_hidden_layers == 28
    threshold = max(names["importance_scores"][layer] for layer in names["layers_to_remove"])
    assert sum(score <= threshold for score in names["importance_scores"].values()) == 4


def test_guide_understanding_importance_scores(run, blocks, capsys) -> None:
    (code,) = blocks("Understanding Importance Scores")
    run(code, importance_scores={0: 0.5, 1: 0.25, 2: 0.75})
    assert "Mean importance: 0.5000" in capsys.readouterr().out


def test_guide_advanced_analysis_options(run, blocks, local_data, tokenizer, capsys) -> None:
    import datasets

    def prepare_dataloader(dataset: Any) -> DataLoader[Any]:
        inputs = tokenizer([row["text"] for row in dataset], return_tensors="pt", padding=True)
        return DataLoader(
            [{key: value[i] for key, value in inputs.items()} for i in range(len(dataset))], batch_size=2
        )

    (code,) = blocks("Advanced Analysis Options")
    run(code, load_dataset=datasets.load_dataset, prepare_dataloader=prepare_dataloader)
    assert capsys.readouterr().out.count("Top 3 most important layers") == 2


def test_scores_of_the_recipe_ignore_the_padding_up_to_max_length(
    run, blocks, local_data, model, tokenizer
) -> None:
    from optipfair_engine import analyze_layer_importance

    (code,) = blocks("Basic Layer Analysis")
    padded = run(code)["importance_scores"]
    import datasets

    rows = [tokenizer(text, return_tensors="pt") for text in datasets.load_dataset("any")["text"]]
    bare = analyze_layer_importance(model, rows, show_progress=False)
    assert all(math.isclose(padded[layer], bare[layer], abs_tol=1e-5) for layer in padded)
    assert not torch.is_grad_enabled() or model.lm_head.weight.grad is None
