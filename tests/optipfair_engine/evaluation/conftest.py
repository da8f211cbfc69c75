"""Tiny models that this folder's tests evaluate."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(seed: int = 0, **sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    base = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**{**base, **sizes}))


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()
