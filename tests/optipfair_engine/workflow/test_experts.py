"""Experts from folder to folder: streamed as in memory, byte for byte, however a family stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from typer.testing import CliRunner

from optipfair_engine.architectures import locate
from optipfair_engine.calibration import as_calibration_set
from optipfair_engine.checkpoints import load_model, load_pruned
from optipfair_engine.checkpoints.loading import quiet_progress
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.pruning import make_plan
from optipfair_engine.streaming import CheckpointLayout, CheckpointSource, apply_plan_to_checkpoint
from optipfair_engine.streaming.layerwise.model import mapped_model
from optipfair_engine.workflow import prune_checkpoint
from optipfair_engine.workflow.prune.out_of_core import plan_out_of_core
from tests.optipfair_engine.families.checks import TOKENS
from tests.optipfair_engine.families.zoo import FAMILIES, Family, build
from tests.tiny import byte_tokenizer, tiny_model, write_checkpoint

MIXTURES = [family for family in FAMILIES if family.kind == "moe" and family.model_type != "deepseek_v2"]
BATCH = {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
ASKED = PruneOptions(pruning_type="EXPERTS", pruning_percentage=25)
TEXT = "Some tokens go to one expert and some to another; what no token needs can go from the model. " * 12


def _tensors(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dict
                tensor = opened.get_tensor(name)
                found[name] = (tensor.dtype, tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found


def _half(family: Family) -> PreTrainedModel:
    """In bfloat16, but for what transformers keeps in float32."""
    model = build(family).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = buffer.data.float()
    return model


@pytest.mark.parametrize("family", MIXTURES, ids=lambda family: family.name)
def test_streamed_experts_are_those_in_memory(family: Family, tmp_path: Path) -> None:
    source, memory, streamed = (tmp_path / name for name in ("source", "memory", "streamed"))
    samples = as_calibration_set([BATCH])
    with quiet_progress():
        write_checkpoint(source, _half(family))
        model = load_model(source)
        plan = make_plan(locate(model), ASKED, samples)
        apply_plan(model, plan).save_pretrained(memory)
    apart = plan_out_of_core(source, ASKED, samples, tmp_path / "work")
    assert apart.kept_experts == plan.kept_experts
    result = apply_plan_to_checkpoint(source, streamed, plan)
    assert result.original_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert _tensors(streamed) == _tensors(memory)
    said, told = (json.loads((folder / "config.json").read_text()) for folder in (streamed, memory))
    assert said == told
    layout = CheckpointLayout(CheckpointSource(streamed))
    assert torch.equal(
        model_logits(mapped_model(layout), TOKENS), model_logits(load_pruned(streamed), TOKENS)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_type": "DEPTH", "layer_indices": [1]},
        {"pruning_type": "ATTENTION", "pruning_percentage": 50},
    ],
    ids=lambda options: options["pruning_type"],
)
def test_layers_and_heads_beside_experts_that_are_stored_one_by_one_are_streamed(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with quiet_progress():
        write_checkpoint(tmp_path / "source", build(MIXTURES[0]))
        model = load_model(tmp_path / "source")
        plan = make_plan(locate(model), PruneOptions(**options))
        apply_plan(model, plan).save_pretrained(tmp_path / "memory")
    apply_plan_to_checkpoint(tmp_path / "source", tmp_path / "streamed", plan)
    assert _tensors(tmp_path / "streamed") == _tensors(tmp_path / "memory")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_tokenizer([TEXT])
    model = tiny_model(
        "qwen2_moe",
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        initializer_range=0.2,
    )
    with quiet_progress():
        return write_checkpoint(tmp_path_factory.mktemp("experts") / "model", model, tokenizer)


def test_the_command_takes_experts_away_out_of_core_and_goes_on_at_another_size(
    source: Path, tmp_path: Path
) -> None:
    text, work = tmp_path / "text.txt", tmp_path / "work"
    text.write_text(TEXT)

    def run(output: str, *more: str) -> dict[str, Any]:
        asked = ["--pruning-type", "EXPERTS", "--calibration", str(text), "--max-length", "16", "--json"]
        place = ["--model-path", str(source), "--output-path", str(tmp_path / output)]
        result = CliRunner().invoke(app, ["prune", *place, *asked, *more])
        assert result.exit_code == 0, result.output
        told: dict[str, Any] = json.loads(result.stdout)
        return told

    streamed = ["--out-of-core", "--work-dir", str(work)]
    metrics = run("a", "--pruning-percentage", "25", "--evaluation", str(text), *streamed)
    assert (metrics["original_expert_count"], metrics["final_expert_count"]) == (8, 6)
    assert metrics["loads_with_transformers"] == 1
    assert metrics["perplexity_pruned"] > 0 and "perplexity_static_same_size" not in metrics
    assert (tmp_path / "a" / "kept_experts.png").exists()
    assert "kept experts: 6 in each of 2 layers" in (tmp_path / "a" / "README.md").read_text()
    written = [file.stat().st_mtime_ns for file in sorted(work.glob("layer-*"))]
    other = run(
        "b",
        "--pruning-percentage",
        "50",
        "--expert-selection-method",
        "FREQUENCY",
        "--evaluation",
        str(text),
        *streamed,
    )
    assert other["final_expert_count"] == 4
    assert [file.stat().st_mtime_ns for file in sorted(work.glob("layer-*"))] == written


def test_a_plan_of_experts_is_applied_again_at_its_size_or_another(source: Path, tmp_path: Path) -> None:
    made = PruneOptions(
        pruning_type="EXPERTS",
        pruning_percentage=25,
        max_length=16,
        verify="structure",
        healing={"max_seconds": 0.2},
    )
    stages: list[str] = []
    first = prune_checkpoint(
        source,
        tmp_path / "made",
        made,
        calibration_texts=[TEXT],
        evaluation_texts=[TEXT],
        report=lambda stage, *_: stages.append(stage),
    )
    assert first["healing_steps"] > 0 and first["perplexity_before_healing"] > 0
    assert list(dict.fromkeys(stages)) == [
        *("load", "calibrate", "select", "evaluate", "prune", "heal", "plot", "save")
    ]
    for percentage, kept in ((25, 6), (50, 4)):
        options = PruneOptions(pruning_percentage=percentage, verify="structure")
        again = prune_checkpoint(source, tmp_path / str(kept), options, plan=tmp_path / "made")
        assert (again["final_expert_count"], again["execution"]) == (kept, "streamed")


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (
            {"pruning_percentage": 90},
            InvalidOptionError,
            r"leaves 1 of 8 experts, but each token is sent to 2",
        ),
        ({"target_parameters": 1000}, InvalidOptionError, "removing experts alone leaves at least"),
    ],
)
def test_the_headers_tell_what_can_not_be_done(
    source: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        prune_checkpoint(
            source,
            tmp_path / "out",
            PruneOptions(pruning_type="EXPERTS", **options),
            calibration_texts=[TEXT],
            report=lambda stage, *_: pytest.fail(f"{stage} had begun"),
        )


def test_a_dense_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    with quiet_progress():
        dense = write_checkpoint(tmp_path / "dense", tiny_model("llama"))
    with pytest.raises(UnsupportedModelError, match="llama: experts can't be removed"):
        prune_checkpoint(dense, tmp_path / "out", ASKED, calibration_texts=[TEXT])
