"""Loading: safetensors only, nothing missing, nothing random, nothing infinite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedModel

from optipfair_engine.architectures import locate
from optipfair_engine.checkpoints import check_finite, load_model, load_pruned, load_tokenizer, save_pruned
from optipfair_engine.errors import (
    CheckpointError,
    InvalidOptionError,
    NonFiniteWeightsError,
    TokenizerError,
    UnsupportedModelError,
)


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_folder_loads_as_it_was_saved(folder: Path, model: PreTrainedModel) -> None:
    loaded = load_model(folder)
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_the_dtype_is_the_one_asked_for(folder: Path, dtype: str | torch.dtype) -> None:
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert load_model(folder, dtype=dtype).dtype == expected


def test_auto_keeps_the_dtype_of_the_checkpoint(tmp_path: Path, model: PreTrainedModel) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    assert load_model(tmp_path / "bf16").dtype == torch.bfloat16


def test_unknown_dtypes_and_absent_devices_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidOptionError, match="dtype must be one of"):
        load_model(folder, dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidOptionError, match="CUDA"):
            load_model(folder, device="cuda")


def test_shards_load(tmp_path: Path, model: PreTrainedModel) -> None:
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    loaded = load_model(tmp_path / "shards")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_missing_tensor_is_never_filled_in_at_random(folder: Path) -> None:
    edit_tensors(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(CheckpointError, match="missing"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    edit_tensors(folder, model__layers__1__mlp__up_proj__weight=torch.zeros(32, 32))
    with pytest.raises(CheckpointError):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    weight = torch.zeros(64, 32)
    weight[3, 5] = value
    edit_tensors(folder, model__layers__1__mlp__up_proj__weight=weight)
    with pytest.raises(NonFiniteWeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)


def test_check_finite_accepts_the_largest_numbers() -> None:
    module = torch.nn.Linear(2, 2, dtype=torch.float16)
    with torch.no_grad():
        module.weight.fill_(65504.0)
        module.bias.fill_(-65504.0)
    check_finite(module)


def test_pickles_are_refused_before_they_are_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save_pretrained") as caught:
        load_model(folder)
    assert caught.value.code == "model_pickled"


def test_truncated_files_are_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.code == "model_truncated"


def test_code_in_the_folder_is_never_run(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('this ran')")
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.code == "model_remote_code"


def test_quantised_checkpoints_are_refused(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedModelError, match="llama: dense holds quantised weights"):
        load_model(folder)


def test_a_config_that_transformers_refuses(folder: Path) -> None:
    edit_config(folder, hidden_size="many")
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.code == "model_config_invalid"


def test_models_without_a_causal_head_load_as_what_they_are(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert type(load_model(tmp_path / "bert")) is BertModel


def unequal(model: PreTrainedModel) -> PreTrainedModel:
    view = locate(model)
    view.mlp(1).keep(torch.arange(0, 64, 2))
    view.attention(2).keep_heads(torch.tensor([2, 3]), torch.tensor([1]))
    view.write_sizes_to_config()
    return model


def test_unequal_layers_need_only_what_save_pretrained_wrote(tmp_path: Path, model: PreTrainedModel) -> None:
    unequal(model).save_pretrained(tmp_path / "pruned")
    for load in (load_pruned, load_model):
        loaded = load(tmp_path / "pruned")
        assert type(loaded) is type(model)
        assert locate(loaded).layer_sizes() == locate(model).layer_sizes()
        states = loaded.state_dict()
        assert all(torch.equal(states[name], tensor) for name, tensor in model.state_dict().items())


def test_a_plain_load_of_unequal_layers_raises(tmp_path: Path, model: PreTrainedModel) -> None:
    unequal(model).save_pretrained(tmp_path / "pruned")
    with pytest.raises(Exception, match="per-layer attribute"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")


def test_a_plain_load_of_unequal_heads_raises(tmp_path: Path, model: PreTrainedModel) -> None:
    view = locate(model)
    view.attention(2).keep_heads(torch.tensor([2, 3]), torch.tensor([1]))
    view.write_sizes_to_config()
    model.save_pretrained(tmp_path / "pruned")
    assert locate(load_pruned(tmp_path / "pruned")).attention(2).num_key_value_heads == 1
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")


def test_load_pruned_refuses_tensors_that_it_does_not_know(folder: Path) -> None:
    edit_tensors(folder, extra=torch.zeros(2))
    with pytest.raises(CheckpointError, match="unknown tensors: extra"):
        load_pruned(folder)


def test_load_pruned_refuses_sizes_that_it_does_not_know(folder: Path) -> None:
    edit_config(folder, per_layer_config={"1": {"rms_norm_eps": 1.0}})
    with pytest.raises(CheckpointError, match="rms_norm_eps"):
        load_pruned(folder)


def test_pruning_what_was_pruned_keeps_the_statement_right(tmp_path: Path, model: PreTrainedModel) -> None:
    view = locate(unequal(model))
    view.remove_layers([0])
    save_pruned(model, tmp_path / "again", verify="structure")
    loaded = load_pruned(tmp_path / "again")
    assert [locate(loaded).mlp(i).intermediate_size for i in range(2)] == [32, 64]
    assert locate(loaded).attention(1).num_heads == 2


def test_a_folder_without_a_tokenizer_says_so(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer files"):
        load_tokenizer(folder)


def test_a_broken_tokenizer_says_so(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="can't be read"):
        load_tokenizer(folder)
