"""A tiny model that this folder's tests calibrate."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM

from optipfair_engine.architectures import ModelView, locate
from tests.tiny import tiny_llama


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama(hidden_size=16, intermediate_size=24, num_hidden_layers=3).train()


@pytest.fixture
def view(model: LlamaForCausalLM) -> ModelView:
    return locate(model)
