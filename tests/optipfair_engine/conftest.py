"""Tiny random models: no download, milliseconds each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)


def make_llama(**changes: Any) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 100,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()


@pytest.fixture
def llama_of() -> Callable[..., LlamaForCausalLM]:
    """Makes a tiny Llama with other sizes."""
    return make_llama


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def phi3() -> Phi3ForCausalLM:
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return Phi3ForCausalLM(config).eval()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """Three batches of four samples; the second half of each first sample is padding."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(3):
        ids = torch.randint(0, 128, (4, 16), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 8:] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made
