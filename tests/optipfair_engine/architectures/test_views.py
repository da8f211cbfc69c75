"""Views of layers: what they show is the model's own weights, and what they cut stays consistent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from transformers import (
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    GPTNeoConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from optipfair_engine.architectures import ARCHITECTURES, find_architecture, locate
from optipfair_engine.errors import UnsupportedModelError
from tests.numbers import assert_near
from tests.tiny import tiny_config, tiny_llama, tiny_model


def llama(**changes: Any) -> PreTrainedModel:
    return tiny_llama(**changes)


def gpt2() -> PreTrainedModel:
    return tiny_model("gpt2", num_hidden_layers=2)


def phi3() -> PreTrainedModel:
    return tiny_model("phi3", pad_token_id=0)


@pytest.mark.parametrize("build", [llama, phi3, gpt2])
def test_rows_and_columns_are_neurons_whatever_the_storage(build: object) -> None:
    view = locate(build()).mlp(1)  # type: ignore[operator]
    size = view.intermediate_size
    assert view.up_weight.shape == (size, 32)
    assert view.down_weight.shape == (32, size)
    if view.kind != "plain":
        assert view.gate_weight is not None and view.gate_weight.shape == (size, 32)
        assert view.gate_weight.data_ptr() != view.up_weight.data_ptr()


@pytest.mark.parametrize("build", [llama, phi3, gpt2])
def test_names_are_those_of_the_state_dict(build: object) -> None:
    model = build()  # type: ignore[operator]
    view = locate(model)
    state = model.state_dict()
    for names in (view.mlp(1).names, view.attention(1).names):
        assert set(names.values()) <= state.keys()
    assert state[view.mlp(1).names["down"]].data_ptr() == view.mlp(1).down_module.weight.data_ptr()


def test_keeping_neurons_keeps_dtype_freezing_and_the_order_of_the_rest() -> None:
    model = llama(mlp_bias=True).to(torch.float16)
    view = locate(model).mlp(2)
    view.up_module.weight.requires_grad_(False)
    up, down, bias = view.up_weight.clone(), view.down_weight.clone(), view.up_module.bias.clone()
    view.keep(torch.tensor([7, 3, 40]))
    kept = [3, 7, 40]
    assert torch.equal(view.up_weight, up[kept]) and torch.equal(view.down_weight, down[:, kept])
    assert torch.equal(view.up_module.bias, bias[kept])
    assert view.up_weight.dtype == torch.float16
    assert not view.up_module.weight.requires_grad
    assert view.down_module.weight.requires_grad
    assert (view.up_module.out_features, view.down_module.in_features) == (3, 3)
    assert view.module.intermediate_size == 3


def test_a_cut_weight_shares_no_storage_with_the_old_one() -> None:
    view = locate(llama()).mlp(0)
    old = view.down_module.weight
    view.keep(torch.arange(48))
    assert view.down_module.weight.untyped_storage().data_ptr() != old.untyped_storage().data_ptr()


@pytest.mark.parametrize("indices", [[], [1, 1], [-1], [48]])
def test_indices_that_make_no_sense_change_nothing(indices: list[int]) -> None:
    view = locate(llama()).mlp(0)
    with pytest.raises(ValueError, match="neurons"):
        view.keep(torch.tensor(indices, dtype=torch.int64))
    assert view.intermediate_size == 48


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_narrowed_down_projection_is_stored_the_family_s_way(build: object) -> None:
    view = locate(build()).mlp(0)  # type: ignore[operator]
    weight = view.down_weight[:, :8].detach().clone()
    view.keep(torch.arange(8))
    assert torch.equal(view.down_weight, weight)
    stored = view.down_module.weight
    assert stored.shape == ((8, 32) if view.down_transposed else (32, 8))
    assert stored.is_contiguous()


@pytest.mark.parametrize(
    ("query", "kv"),
    [([0], [0, 1]), ([0, 1, 2], [0, 1]), ([0, 2], [0]), ([0, 1], [1]), ([], []), ([0, 4], [0, 1])],
)
def test_heads_that_form_no_equal_groups_are_refused(query: list[int], kv: list[int]) -> None:
    view = locate(llama()).attention(0)
    with pytest.raises(ValueError):
        view.keep_heads(torch.tensor(query, dtype=torch.int64), torch.tensor(kv, dtype=torch.int64))
    assert (view.num_heads, view.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize("build", [llama, phi3])
def test_one_query_head_of_each_group_may_stay(build: object) -> None:
    model = build()  # type: ignore[operator]
    masked = build()  # type: ignore[operator]
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in range(4):
            locate(masked).attention(layer).o_weight[:, [*range(8), *range(24, 32)]] = 0
    view = locate(model)
    for layer in range(4):
        view.attention(layer).keep_heads(torch.tensor([1, 2]), torch.tensor([0, 1]))
    view.write_sizes_to_config()
    ids = torch.arange(10)[None]
    assert_near(model(ids).logits, masked(ids).logits)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 2)
    assert model.config.head_dim == 8


def test_head_counts_that_the_config_refuses_are_refused_first() -> None:
    model = llama(num_attention_heads=6, num_key_value_heads=6, hidden_size=48, intermediate_size=8)
    view = locate(model).attention(0)
    with pytest.raises(UnsupportedModelError, match="5 attention heads"):
        view.keep_heads(torch.arange(5), torch.arange(5))
    assert view.num_heads == 6


def test_layers_that_go_take_their_entries_of_the_config_along() -> None:
    model = llama()
    view = locate(model)
    view.mlp(3).keep(torch.arange(16))
    view.write_sizes_to_config()
    view.remove_layers([0, 1])
    assert model.config.num_hidden_layers == 2
    assert {int(k): v for k, v in model.config.to_dict()["per_layer_config"].items()} == {
        1: {"intermediate_size": 16}
    }
    view.remove_layers([1])
    assert model.config.to_dict().get("per_layer_config") is None


@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [1, 1], [4], [-1]])
def test_layers_that_can_t_go_change_nothing(layers: list[int]) -> None:
    view = locate(llama())
    with pytest.raises(ValueError):
        view.remove_layers(layers)
    assert view.num_layers == view.config.num_hidden_layers == 4


def test_t5_s_decoder_is_a_stack_of_its_own() -> None:
    config = T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=64
    )
    model = T5ForConditionalGeneration(config).eval()
    bias = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.clone()
    view = locate(model, "decoder.block")
    assert view.num_layers == 3
    view.remove_layers([0])
    assert (model.config.num_layers, model.config.num_decoder_layers) == (2, 2)
    first = model.decoder.block[0].layer[0].SelfAttention
    assert first.has_relative_attention_bias
    assert torch.equal(first.relative_attention_bias.weight, bias)
    assert "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in model.state_dict()


def test_a_family_whose_layers_depend_on_their_number_is_refused_before_anything_is_touched() -> None:
    config = tiny_config("gpt2", num_hidden_layers=2, scale_attn_by_inverse_layer_idx=True)
    view = locate(GPT2LMHeadModel(config))
    with pytest.raises(UnsupportedModelError, match=r"gpt2.*number of the layer"):
        view.remove_layers([0])
    assert view.num_layers == 2


def test_an_unknown_family_is_named_with_what_was_looked_for() -> None:
    config = GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, vocab_size=64, attention_types=[[["global"], 2]]
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=r"'gpt_neo'.*llama"):
        locate(model)
    view = locate(model, "transformer.h")
    assert view.num_layers == 2
    for refused in (lambda: view.mlp(0), lambda: view.check_depth([0]), lambda: view.attention(0)):
        with pytest.raises(UnsupportedModelError, match="gpt_neo"):
            refused()


def test_a_path_that_is_no_list_of_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model\.norm"):
        locate(llama(), "model.norm")


def test_a_base_model_is_found_too() -> None:
    assert locate(llama().model).layers_path == "layers"


def test_every_entry_is_found_under_its_own_name() -> None:
    assert all(find_architecture(name).model_type == name for name in ARCHITECTURES)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype) -> None:
    model = llama()
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(48, 32, dtype=dtype), requires_grad=False
    )
    with pytest.raises(UnsupportedModelError, match="quantised"):
        locate(model).mlp(0)


def test_offloaded_weights_are_refused() -> None:
    model = cpu_offload(llama(), offload_buffers=False)
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        locate(model).mlp(0)


def test_components_are_the_modules_whose_output_is_meant() -> None:
    view = locate(llama())
    layer = view.layers[2]
    expected = {
        "attention_output": layer.self_attn,
        "mlp_output": layer.mlp,
        "gate_proj": layer.mlp.gate_proj,
        "up_proj": layer.mlp.up_proj,
        "down_proj": layer.mlp.down_proj,
        "input_norm": layer.input_layernorm,
    }
    for kind, module in expected.items():
        assert view.component(2, kind) is module  # type: ignore[arg-type]
    assert locate(phi3()).component(0, "gate_proj") is None
    assert locate(gpt2()).component(0, "gate_proj") is None


@pytest.mark.parametrize("thing", [None, torch.nn.Linear(2, 2)])
def test_what_is_no_transformers_model_is_refused_by_its_type(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=f"needed, got {type(thing).__name__}"):
        locate(thing)
