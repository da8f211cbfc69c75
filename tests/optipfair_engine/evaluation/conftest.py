"""Tiny models that this folder's tests evaluate."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM

from tests.tiny import tiny_llama


def make_model(seed: int = 0, **sizes: int) -> LlamaForCausalLM:
    small = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny_llama(seed=seed, **(small | heads | sizes)).train()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()
