"""``optipfair prune`` streams what it can, and does the rest in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from optipfair_engine.checkpoints import load_pruned, verify_reload
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, ReloadCheckError, UnsupportedModelError
from optipfair_engine.headers import read_headers
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.options.words import VerifyLevel
from optipfair_engine.streaming import CheckpointSource, told
from optipfair_engine.workflow import prune_checkpoint
from tests.tiny import word_tokenizer


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, ["prune", *map(str, arguments)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "asked",
    [
        {"pruning_percentage": 30},
        {"expansion_rate": 100},
        {"target_parameters": 30_000},
        {"target_bytes": 60_000},
        {"pruning_type": "ATTENTION", "target_parameters": 33_000},
    ],
    ids=["30 %", "square", "parameters", "bytes", "parameters of heads"],
)
def test_the_metrics_and_files_are_those_of_the_in_memory_path(
    checkpoint: Any, tmp_path: Path, asked: dict[str, Any]
) -> None:
    source = checkpoint("llama", max_shard_size="1GB")
    if "target_parameters" in asked:  # then a tied tensor that is stored all the same must not be counted
        weights = load_file(source / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    options = PruneOptions(**asked, verify="structure")
    streamed = prune_checkpoint(source, tmp_path / "streamed", options)
    memory = prune_checkpoint(source, tmp_path / "memory", options.changed(execution="memory"))
    assert (streamed["execution"], memory["execution"]) == ("streamed", "memory")
    own = {"seconds", "output_bytes", "execution", "execution_reason"}
    assert {k: v for k, v in streamed.items() if k not in own} == {
        k: v for k, v in memory.items() if k not in own
    }
    for name in ("plan.json", "config.json", "generation_config.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()


def test_out_of_core_without_calibration_streams_or_says_why_not(checkpoint: Any, tmp_path: Path) -> None:
    source, options = checkpoint("llama"), PruneOptions(pruning_percentage=30, verify="structure")
    prune_checkpoint(source, tmp_path / "out", options.changed(execution="streamed"))
    planned = PruneOptions(verify="structure")
    prune_checkpoint(source, tmp_path / "again", planned.changed(execution="streamed"), plan=tmp_path / "out")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidOptionError, match=r"a folder with safetensors, and model\.gguf is none"):
        prune_checkpoint(tmp_path / "model.gguf", tmp_path / "none", options.changed(execution="streamed"))


def test_a_snapshot_of_the_hub_is_named_after_its_model_by_both_paths(
    checkpoint: Any, tmp_path: Path
) -> None:
    source = tmp_path / "models--owner--name" / "snapshots" / "abc123"
    source.parent.mkdir(parents=True)
    checkpoint("llama").rename(source)
    options = PruneOptions(pruning_percentage=30, verify="structure")
    prune_checkpoint(source, tmp_path / "streamed", options)
    prune_checkpoint(source, tmp_path / "memory", options.changed(execution="memory"))
    for name in ("streamed", "memory"):
        manifest = json.loads((tmp_path / name / "optipfair_manifest.json").read_text())
        assert manifest["source"] == {"name": "owner/name", "revision": "abc123"}


def test_a_flipped_byte_is_found_by_the_manifest(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama")
    prune_checkpoint(source, tmp_path / "out", PruneOptions(pruning_percentage=30, verify="structure"))
    verify_reload(tmp_path / "out", level="structure")
    weights = tmp_path / "out" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ReloadCheckError):
        verify_reload(tmp_path / "out", level="structure")


def test_the_command_streams_static_pruning(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr("optipfair_engine.workflow.prune.in_memory.load", fail)
    run("--model-path", checkpoint("llama"), "--output-path", tmp_path / "out", "--pruning-percentage", 30)
    load_pruned(tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "optipfair_manifest.json").read_text())["reload_check"] == "structure"
    )


def test_the_command_falls_back_to_memory(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("gpt2", max_shard_size="1GB")
    weights = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    run("--model-path", source, "--output-path", tmp_path / "out", "--pruning-type", "MLP")
    load_pruned(tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    manifest = json.loads((tmp_path / "out" / "optipfair_manifest.json").read_text())
    assert metrics["execution"] == manifest["execution"] == "memory"
    # the reason is what stood in the way of streaming
    assert metrics["execution_reason"] == manifest["execution_reason"]
    assert "gpt2" in metrics["execution_reason"]


def test_what_memory_is_too_small_for_is_streamed_and_checked_by_its_structure(
    checkpoint: Any, tmp_path: Path
) -> None:
    source, options = checkpoint("llama"), PruneOptions(pruning_percentage=30)
    metrics = prune_checkpoint(source, tmp_path / "out", options, memory_limit=5 * 10**8)
    assert (metrics["execution"], metrics["reload_check"]) == ("streamed", "structure")
    manifest = json.loads((tmp_path / "out" / "optipfair_manifest.json").read_text())
    assert manifest["reload_check"] == "structure"
    assert "memory" in manifest["execution_reason"]
    enough = prune_checkpoint(source, tmp_path / "enough", options, memory_limit=10**12)
    assert (enough["execution"], enough["reload_check"]) == ("memory", "logits")


def test_the_command_prunes_out_of_core_and_goes_on_from_its_work_folder(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("llama")
    words = ["<unk>", *(f"w{i}" for i in range(1, 90))]
    word_tokenizer(words, unk_token="<unk>", eos_token="w1").save_pretrained(source)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{1 + i * i % 89}" for i in range(2000)))
    common = [
        "--model-path",
        source,
        "--calibration",
        text,
        "--max-length",
        32,
        "--work-dir",
        tmp_path / "work",
    ]
    refit = ["--method", "OBS", "--compensation", "least_squares"]
    run(*common, *refit, "--pruning-percentage", 30, "--output-path", tmp_path / "thirty")

    def fail(*_: object) -> None:
        raise RuntimeError("a layer was run")

    monkeypatch.setattr("optipfair_engine.streaming.layerwise.run.step", fail)
    run(*common, *refit, "--pruning-percentage", 50, "--output-path", tmp_path / "fifty")
    assert load_pruned(tmp_path / "thirty").config.intermediate_size == 56
    assert load_pruned(tmp_path / "fifty").config.intermediate_size == 40


STREAMED: dict[str, dict[str, Any]] = {
    "width": {"pruning_percentage": 30, "verify": "none"},
    "checked": {"pruning_percentage": 30, "verify": "structure"},
    "heads": {"pruning_type": "ATTENTION", "pruning_percentage": 50, "verify": "structure"},
}


def test_streaming_needs_no_transformers_and_writes_the_same(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("qwen3")
    code = (
        "import sys; from pathlib import Path;"
        "from optipfair_engine.options.prune import PruneOptions;"
        "from optipfair_engine.workflow import prune_checkpoint\n"
        f"for name, asked in {STREAMED!r}.items():\n"
        f"    prune_checkpoint(Path({str(source)!r}), Path({str(tmp_path)!r}, name), PruneOptions(**asked))\n"
        "    print(name, [module for module in ('torch', 'transformers') if module in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # copying and MAW take NumPy alone
    assert answer.stdout.splitlines() == ["width []", "checked []", "heads ['torch']"]
    for name, asked in STREAMED.items():
        check_as_in_memory(source, tmp_path / name, PruneOptions(**{**asked, "verify": "structure"}))


def check_as_in_memory(source: Path, streamed: Path, options: PruneOptions) -> None:
    memory = streamed.with_name(f"{streamed.name} in memory")
    checked = prune_checkpoint(source, memory, options.changed(execution="memory"))
    plain = json.loads((streamed / "metrics.json").read_text())
    own = ("seconds", "output_bytes", "reload_check", "execution", "execution_reason")
    assert {k: v for k, v in plain.items() if k not in own} == {
        k: v for k, v in checked.items() if k not in own
    }
    plain_weights, weights = (load_file(folder / "model.safetensors") for folder in (streamed, memory))
    assert plain_weights.keys() == weights.keys()
    assert all(torch.equal(plain_weights[name], weights[name]) for name in weights)
    configs = [load_pruned(folder).config.to_dict() for folder in (streamed, memory)]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]
    verify_reload(streamed, level="structure")


@pytest.mark.parametrize("verify", ["none", "structure"])
def test_numbers_of_heads_that_a_config_refuses_are_not_written(
    checkpoint: Any, tmp_path: Path, verify: VerifyLevel
) -> None:
    source = checkpoint("llama", num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    six = PruneOptions(pruning_type="ATTENTION", pruning_percentage=25, verify=verify)
    with pytest.raises(UnsupportedModelError, match="not a multiple of the number of attention heads"):
        prune_checkpoint(source, tmp_path / "six", six)
    size = sum(p.numel() for p in load_pruned(source).parameters())
    four = PruneOptions(pruning_type="ATTENTION", target_parameters=size - 1, verify=verify)
    prune_checkpoint(source, tmp_path / "four", four)
    assert load_pruned(tmp_path / "four").config.num_attention_heads == 4


def test_what_was_written_is_read_back_and_compared(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_last(source: Path) -> dict[str, Any]:
        found = read_headers(source)
        found.popitem()
        return found

    source, options = checkpoint("llama"), PruneOptions(pruning_percentage=30, verify="structure")
    monkeypatch.setattr(told, "read_headers", without_the_last)
    with pytest.raises(ReloadCheckError, match="tensors missing"):
        prune_checkpoint(source, tmp_path / "out", options)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_tensors_that_a_config_does_not_mean_are_left_to_transformers(
    checkpoint: Any, tmp_path: Path
) -> None:
    source = checkpoint("llama", max_shard_size="1GB")
    assert told.tensors_are_told(CheckpointSource(source))
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = weights["model.norm.weight"].clone()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert not told.tensors_are_told(CheckpointSource(source))
    options = PruneOptions(pruning_percentage=30, verify="structure")
    with pytest.raises(UnsupportedModelError, match="only equal ones are streamed"):
        prune_checkpoint(source, tmp_path / "out", options.changed(execution="streamed"))
