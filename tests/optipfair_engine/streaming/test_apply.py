"""A streamed checkpoint holds the tensors, byte by byte, that pruning in memory and saving gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from optipfair_engine.architectures import locate
from optipfair_engine.checkpoints import load_model, load_pruned
from optipfair_engine.errors import NonFiniteWeightsError, PlanError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans import HeadPlan, PruningPlan, apply_plan
from optipfair_engine.pruning import make_plan
from optipfair_engine.pruning.static_plan import static_plan
from optipfair_engine.streaming import apply_plan_to_checkpoint
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.source import CheckpointSource

WIDTH = {"pruning_percentage": 30}
UNEVEN = {"pruning_percentage": 30, "layer_indices": [0, 2]}
DEPTH = {"pruning_type": "DEPTH", "layer_indices": [1]}
HEADS = {"pruning_type": "ATTENTION", "pruning_percentage": 50}
QUERY_HEADS = {"pruning_type": "ATTENTION", "pruning_percentage": 50, "attention_unit": "query_head"}

CASES = [
    ("llama", WIDTH),
    ("llama", {**WIDTH, "neuron_selection_method": "VOW"}),
    ("llama", UNEVEN),
    ("llama", DEPTH),
    ("llama", HEADS),
    ("mistral", WIDTH),
    ("qwen2", QUERY_HEADS),
    ("qwen3", WIDTH),
    ("qwen3", HEADS),
    ("qwen3", DEPTH),
    ("phi3", WIDTH),
    ("phi3", HEADS),
    ("gemma2", WIDTH),
    ("gemma2", DEPTH),
    ("gpt2", {**WIDTH, "pruning_type": "MLP"}),
    ("gpt2", DEPTH),
    ("opt", {**WIDTH, "pruning_type": "MLP"}),
]


def plan_of(source: Path, options: PruneOptions) -> PruningPlan:
    return static_plan(CheckpointLayout(CheckpointSource(source)), options)


def tensors(folder: Path) -> dict[str, Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            found |= dict(zip(shard.keys(), map(shard.get_tensor, shard.keys()), strict=True))
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def in_memory(source: Path, output: Path, options: PruneOptions) -> PruningPlan:
    model = load_model(source)
    plan = make_plan(locate(model), options)
    apply_plan(model, plan, inplace=True).save_pretrained(output)
    return plan


@pytest.mark.parametrize(
    ("family", "asked"), CASES, ids=[f"{f}-{'-'.join(map(str, o.values()))}" for f, o in CASES]
)
def test_the_same_plan_tensors_and_config_as_in_memory(
    checkpoint: Any, tmp_path: Path, family: str, asked: dict[str, Any]
) -> None:
    source, options = checkpoint(family), PruneOptions(**asked)
    expected = in_memory(source, tmp_path / "memory", options)

    plan = plan_of(source, options)
    apply_plan_to_checkpoint(source, tmp_path / "streamed", plan)

    assert plan.to_json() == expected.to_json()
    assert equal(tensors(tmp_path / "streamed"), tensors(tmp_path / "memory"))
    assert not equal(tensors(tmp_path / "streamed"), tensors(source))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "streamed" / name).read_text()) == json.loads(
            (tmp_path / "memory" / name).read_text()
        )
    load_pruned(tmp_path / "streamed")


def test_refitted_weights_take_the_place_of_old_ones(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    weight = torch.randn(32, 40)
    plan = PruningPlan("llama", 3, 32, kept_neurons={1: tuple(range(0, 80, 2))}, weights={name: weight})
    apply_plan_to_checkpoint(source, tmp_path / "streamed", plan)
    assert torch.equal(tensors(tmp_path / "streamed")[name], weight.bfloat16())


def test_several_chat_templates_are_kept_without_a_sub_folder(checkpoint: Any, tmp_path: Path) -> None:
    source, templates = checkpoint("llama"), {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=RawTokenizer(WordLevel({"a": 0}, unk_token="a")))
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(source)
    assert (source / "additional_chat_templates").is_dir()
    plan = plan_of(source, PruneOptions(**WIDTH))
    apply_plan_to_checkpoint(source, tmp_path / "out", plan)
    assert all(path.is_file() for path in (tmp_path / "out").iterdir())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == templates


def test_shards_are_cut_indexed_and_hashed(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("mistral", dtype=torch.float32)
    plan = plan_of(source, PruneOptions(**WIDTH))
    result = apply_plan_to_checkpoint(source, tmp_path / "out", plan, max_shard_bytes=20_000)
    files = {file.name: file for file in (tmp_path / "out").glob("*.safetensors")}
    assert len(files) > 2
    assert result.files.keys() == files.keys()
    for name, (size, sha256) in result.files.items():
        content = files[name].read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "out"))
    load_pruned(tmp_path / "out")


def test_the_same_plan_gives_the_same_bytes(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama")
    plan = plan_of(source, PruneOptions(**WIDTH))
    runs = [apply_plan_to_checkpoint(source, tmp_path / name, plan).files for name in ("a", "b")]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("place", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_anywhere_is_an_error_that_names_the_tensor(
    checkpoint: Any, tmp_path: Path, place: str, value: float
) -> None:
    source = checkpoint("llama", max_shard_size="1GB")
    from safetensors.torch import save_file

    weights = tensors(source)
    weights[place].view(-1)[-1] = value
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(source, PruneOptions(**DEPTH))
    with pytest.raises(NonFiniteWeightsError, match=place):
        apply_plan_to_checkpoint(source, tmp_path / "out", plan)


def test_a_plan_for_another_model_is_refused_before_anything_is_written(
    checkpoint: Any, tmp_path: Path
) -> None:
    source = checkpoint("llama")
    for plan in (
        PruningPlan("qwen2", 3, 32),
        PruningPlan("llama", 4, 32),
        PruningPlan("llama", 3, 32, kept_neurons={0: (79, 80)}),
        PruningPlan("llama", 3, 32, kept_heads={0: HeadPlan((0, 2, 3), (0, 1))}),
        PruningPlan("llama", 3, 32, weights={"model.layers.9.x": torch.zeros(1)}),
    ):
        with pytest.raises(PlanError):
            apply_plan_to_checkpoint(source, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


def test_tensors_under_other_names_than_the_models_are_refused(checkpoint: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = checkpoint("gpt2", max_shard_size="1GB")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors(source).items()}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    load_model(source)  # transformers knows these names too
    plan = plan_of(source, PruneOptions(pruning_percentage=30, pruning_type="MLP"))
    with pytest.raises(UnsupportedModelError, match="only equal ones are streamed"):
        apply_plan_to_checkpoint(source, tmp_path / "out", plan)
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_that_loading_would_convert_are_refused(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama", dtype=torch.float32)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="convert"):
        plan_of(source, PruneOptions(**WIDTH))


def test_every_layer_is_reported(checkpoint: Any, tmp_path: Path) -> None:
    source, seen = checkpoint("llama"), []
    plan = plan_of(source, PruneOptions(**WIDTH))
    apply_plan_to_checkpoint(source, tmp_path / "out", plan, report=lambda *step: seen.append(step[:3]))
    assert seen == [("prune", done, 3) for done in (1, 2, 3)]


def test_a_failure_behind_many_chunks_ends_the_run(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes must not wait for buffers that the failed thread holds."""
    from safetensors.torch import save_file

    monkeypatch.setattr("optipfair_engine.streaming.gather.CHUNK", 64)
    source = checkpoint("llama", max_shard_size="1GB")
    plan = plan_of(source, PruneOptions(**WIDTH))
    weights = tensors(source)
    weights["model.embed_tokens.weight"][0, 0] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteWeightsError, match="embed_tokens"):
        apply_plan_to_checkpoint(source, tmp_path / "out", plan)
    assert list((tmp_path / "out").iterdir()) == []
