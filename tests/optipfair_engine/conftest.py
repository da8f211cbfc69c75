"""The tiny models and checkpoints that most rooms of the engine's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Phi3ForCausalLM,
)

from optipfair_engine import figures
from optipfair_engine.checkpoints import verify
from tests.reloading import in_this_process
from tests.tiny import tiny_llama, tiny_model, write_checkpoint


@pytest.fixture(autouse=True, scope="session")
def check_in_this_process() -> Iterator[None]:
    """A new Python for each reload check would cost seconds: ``test_saving`` starts one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "run_fresh", in_this_process)
        yield


draw = figures.Drawing.png


def sketch(_figure: figures.Drawing, dpi: int = 0) -> bytes:
    """A figure without its pixels, which take most of its time."""
    return b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True, scope="session")
def sketched_plots() -> Iterator[None]:
    """Plots of prunes and evaluations are sketches, but where a test asks for ``drawn_plots``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures.Drawing, "png", sketch)
        yield


@pytest.fixture
def drawn_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures.Drawing, "png", draw)


def make_llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {"vocab_size": 128, "intermediate_size": 100, "num_hidden_layers": 6, "num_attention_heads": 8}
    return tiny_llama(**({**sizes, "num_key_value_heads": 4, "max_position_embeddings": 64} | changes))


@pytest.fixture
def llama_of() -> Callable[..., LlamaForCausalLM]:
    """Makes a tiny Llama with other sizes."""
    return make_llama


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = tiny_model("gpt2", vocab_size=128, max_position_embeddings=64, **ends)
    return cast("GPT2LMHeadModel", model)


@pytest.fixture
def phi3() -> Phi3ForCausalLM:
    sizes = {"vocab_size": 128, "intermediate_size": 100, "num_hidden_layers": 3}
    model = tiny_model("phi3", **sizes, max_position_embeddings=64, pad_token_id=0)
    return cast("Phi3ForCausalLM", model)


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


#: what a family's config needs beside the common sizes
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False, "head_dim": 8},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 8},
    "phi3": {"tie_word_embeddings": False},
    "gemma2": {"head_dim": 8},
    "gpt2": {"n_inner": 80},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 32},
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes ``checkpoint(family, dtype=…, max_shard_size=…)``: a folder with a random model."""

    def make(
        family: str, dtype: torch.dtype = torch.bfloat16, max_shard_size: str = "30KB", **changes: Any
    ) -> Path:
        common: dict[str, Any] = {"vocab_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 64}
        common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        if "ffn_dim" not in FAMILIES[family] and family != "gpt2":
            common["intermediate_size"] = 80
        model = tiny_model(family, **(common | FAMILIES[family] | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.05)
        return write_checkpoint(tmp_path / f"{family}-source", model.to(dtype), max_shard_size=max_shard_size)

    return make
