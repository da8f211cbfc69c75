"""Experts from folder to folder: streamed as in memory, byte for byte, however a family stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from optipfair_engine.calibration import as_calibration_set
from optipfair_engine.checkpoints import load_pruned
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.streaming import CheckpointLayout, CheckpointSource
from optipfair_engine.streaming.layerwise.model import mapped_model
from optipfair_engine.workflow import prune_checkpoint
from tests.optipfair_engine.families.checks import TOKENS
from tests.optipfair_engine.families.zoo import FAMILIES, Family, build
from tests.tiny import word_tokenizer, write_checkpoint

MIXTURES = [family for family in FAMILIES if family.kind == "moe" and family.model_type != "deepseek_v2"]
BATCH = {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}


def _options(**changes: Any) -> PruneOptions:
    return PruneOptions(
        **{"pruning_type": "EXPERTS", "pruning_percentage": 25, "verify": "structure"} | changes
    )


def _tensors(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dict
                tensor = opened.get_tensor(name)
                found[name] = (tensor.dtype, tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found


@pytest.mark.parametrize("family", MIXTURES, ids=lambda family: family.name)
def test_streamed_experts_are_those_in_memory(family: Family, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model = build(family)
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = buffer.data.float()  # as transformers keeps it
    write_checkpoint(source, model, word_tokenizer(["<unk>", "a", "word"], unk_token="<unk>"))
    samples = as_calibration_set([BATCH])
    told = {}
    for execution in ("memory", "streamed"):
        output = tmp_path / execution
        told[execution] = prune_checkpoint(
            source, output, _options(execution=execution), calibration_texts=samples
        )
        assert told[execution]["execution"] == execution
    memory, streamed = tmp_path / "memory", tmp_path / "streamed"
    assert _tensors(streamed) == _tensors(memory)
    assert (streamed / "plan.json").read_text() == (memory / "plan.json").read_text()
    assert (streamed / "config.json").read_text() == (memory / "config.json").read_text()
    same = ("original_parameters", "pruned_parameters", "final_expert_count", "loads_with_transformers")
    assert {told["memory"][name] for name in same} and all(
        told["memory"][name] == told["streamed"][name] for name in same
    )
    loaded = load_pruned(streamed)
    mapped = mapped_model(CheckpointLayout(CheckpointSource(streamed)))
    assert torch.equal(model_logits(mapped, TOKENS), model_logits(loaded, TOKENS))
