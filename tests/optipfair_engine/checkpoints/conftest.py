"""Tiny models on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


def tiny_llama(**changes: object) -> PreTrainedModel:
    """Three layers, float32, random but the same each time."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture
def folder(tmp_path: Path, model: PreTrainedModel) -> Path:
    """The dense model as transformers saves it."""
    target = tmp_path / "dense"
    model.save_pretrained(target)
    return target
