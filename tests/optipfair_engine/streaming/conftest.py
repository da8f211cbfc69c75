"""Tiny random checkpoints of several families, written as transformers writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"tie_word_embeddings": False},
    "gemma2": {},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 80, "n_positions": 64},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 32},
}

Maker = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Maker:
    """Makes ``checkpoint(family, dtype=…, shards=…)``: a folder with a random model of three layers."""

    def make(
        family: str, dtype: torch.dtype = torch.bfloat16, max_shard_size: str = "30KB", **changes: Any
    ) -> Path:
        own = FAMILIES[family]
        common = {} if family == "gpt2" else COMMON
        if family == "gpt2":
            common = {key: COMMON[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
        if family == "opt":
            common = {
                k: v
                for k, v in COMMON.items()
                if k not in ("intermediate_size", "num_key_value_heads", "head_dim")
            }
        config = CONFIG_MAPPING[family](**(common | own | changes))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.05)
        folder = tmp_path / f"{family}-source"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return make
