"""Tiny models on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.tiny import tiny_llama


def make_model() -> PreTrainedModel:
    """Three layers, float32, random but the same each time."""
    return tiny_llama(
        seed=7, vocab_size=96, intermediate_size=64, num_hidden_layers=3, max_position_embeddings=64
    )


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model()


@pytest.fixture
def folder(tmp_path: Path, model: PreTrainedModel) -> Path:
    """The dense model as transformers saves it."""
    target = tmp_path / "dense"
    model.save_pretrained(target)
    return target
