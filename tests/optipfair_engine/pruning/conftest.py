"""A tiny model with correlated neurons, and calibration for it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import CalibrationSet, calibration_from_windows
from tests.tiny import tiny_llama


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama(
        hidden_size=24, intermediate_size=40, num_attention_heads=6, head_dim=8, initializer_range=0.25
    )


@pytest.fixture
def view(model: LlamaForCausalLM) -> ModelView:
    return locate(model)


@pytest.fixture
def calibration() -> CalibrationSet:
    generator = torch.Generator().manual_seed(7)
    windows = torch.randint(0, 64, (32, 24), generator=generator).tolist()
    return calibration_from_windows(windows, batch_size=5, source="random")
