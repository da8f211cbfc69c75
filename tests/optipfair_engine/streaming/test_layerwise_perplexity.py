"""Perplexity layer by layer from disk is that of the model in memory, for streamed prunes of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optipfair_engine.calibration import CalibrationSet, as_calibration_set
from optipfair_engine.calibration.next_token import perplexity_of
from optipfair_engine.checkpoints import load_model, load_pruned
from optipfair_engine.computing.asked import computing
from optipfair_engine.evaluation.perplexity import score_windows
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.streaming.layerwise.evaluation import score_layerwise
from optipfair_engine.streaming.layerwise.run import open_checkpoint
from optipfair_engine.workflow import prune_checkpoint

KINDS: list[dict[str, Any]] = [
    {"pruning_percentage": 30},
    {"pruning_percentage": 30, "neuron_selection_method": "OBS", "compensation": "least_squares"},
    {"pruning_percentage": 30, "layer_indices": [0]},
    {"pruning_type": "DEPTH", "num_layers_to_remove": 1, "layer_selection_method": "importance"},
]


def some_windows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in (24, 24, 17)]


def some_calibration() -> CalibrationSet:
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 96, (8, 24), generator=generator) for _ in range(2)]
    return as_calibration_set([{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids])


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Windows that stand for those of a text: the random models have no tokenizer."""
    found = some_windows()
    monkeypatch.setattr(
        "optipfair_engine.workflow.prune.checkpoint.evaluation_windows",
        lambda _source, _options, texts: found if texts else None,
    )
    monkeypatch.setattr(
        "optipfair_engine.workflow.prune.out_of_core.evaluation_windows",
        lambda _source, _options, texts: found if texts else None,
    )
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma2", "opt"])
def test_it_is_the_figure_of_the_model_in_memory(checkpoint: Any, family: str, dtype: torch.dtype) -> None:
    source = checkpoint(family, dtype=dtype)
    expected = score_windows(load_model(source), some_windows())
    found = score_layerwise(open_checkpoint(source), some_windows())
    assert found == pytest.approx(expected.mean_loss, rel=1e-4)
    assert perplexity_of(found) == pytest.approx(expected.perplexity, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", KINDS, ids=range(len(KINDS)))
def test_streamed_prunes_report_both_figures(
    checkpoint: Any, windows: list[list[int]], tmp_path: Path, asked: dict[str, Any], dtype: torch.dtype
) -> None:
    source, output = checkpoint("llama", dtype=dtype), tmp_path / "out"
    options = PruneOptions(**asked, execution="streamed", evaluation_max_length=24, verify="structure")
    metrics = prune_checkpoint(
        source,
        output,
        options,
        calibration_texts=some_calibration() if asked != KINDS[0] else None,
        evaluation_texts=["text"],
    )
    with computing("float32" if "float32" in (metrics.get("compute_dtype") or "") else "checkpoint"):
        dense = score_windows(load_model(source), windows).perplexity
        pruned = score_windows(load_pruned(output), windows).perplexity
    assert metrics["perplexity_dense"] == pytest.approx(dense, rel=1e-3)
    assert metrics["perplexity_pruned"] == pytest.approx(pruned, rel=1e-3)
    assert metrics["perplexity_ratio"] == pytest.approx(pruned / dense, rel=2e-3)
    read = [metrics[f"evaluation_{name}"] for name in ("max_length", "windows", "tokens")]
    assert read == [24, 3, 23 + 23 + 16]
    manifest = json.loads((output / "optipfair_manifest.json").read_text())
    assert manifest["measured"]["perplexity_dense"] == metrics["perplexity_dense"]


def test_a_run_that_goes_on_says_where_and_gives_the_same_files(
    checkpoint: Any, windows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told, layers = checkpoint("llama"), list[Any](), list[int]()
    options = PruneOptions(**KINDS[1], execution="streamed", evaluation_max_length=24, verify="structure")

    def run(name: str, state: str) -> None:
        prune_checkpoint(
            source,
            tmp_path / name,
            options,
            calibration_texts=some_calibration(),
            evaluation_texts=["text"],
            state=tmp_path / state,
            announce=lambda what, data: told.append((what, dict(data))),
        )

    run("undisturbed", "first")
    from optipfair_engine.streaming.layerwise import run as module

    real = module.step

    def counted(view: Any, index: int, *rest: Any) -> bool:
        if index == 2 and "interrupted" not in [what for what, _ in told]:
            told.append(("interrupted", {}))
            raise KeyboardInterrupt
        layers.append(index)
        return real(view, index, *rest)

    monkeypatch.setattr(module, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        run("broken", "second")
    layers.clear()
    told.clear()
    told.append(("interrupted", {}))
    run("resumed", "second")
    assert ("resumed", {"layer": 2}) in told
    assert set(layers) == {2}
    for name in ("model.safetensors", "plan.json", "optipfair_manifest.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_the_state_of_another_run_is_discarded(
    checkpoint: Any, windows: list[list[int]], tmp_path: Path
) -> None:
    source, state, told = checkpoint("llama"), tmp_path / "state", list[str]()
    state.mkdir()
    (state / "progress.json").write_text('{"run": "another", "layers_done": 2}')
    (state / "layer-0000.safetensors").write_bytes(b"nothing")
    prune_checkpoint(
        source,
        tmp_path / "out",
        PruneOptions(**KINDS[1], execution="streamed", verify="structure"),
        calibration_texts=some_calibration(),
        state=state,
        announce=lambda what, _: told.append(what),
    )
    assert told == ["execution"]
    assert json.loads((state / "progress.json").read_text())["layers_done"] == 3


def test_logits_are_compared_where_there_is_memory_for_them(checkpoint: Any, tmp_path: Path) -> None:
    source, output = checkpoint("llama", dtype=torch.float32), tmp_path / "out"
    options = PruneOptions(pruning_percentage=30, execution="streamed")
    metrics = prune_checkpoint(source, output, options)
    assert (metrics["execution"], metrics["reload_check"]) == ("streamed", "logits")
    less = prune_checkpoint(source, tmp_path / "less", options, memory_limit=5 * 10**8)
    assert (less["execution"], less["reload_check"]) == ("streamed", "structure")
    manifest = json.loads((tmp_path / "less" / "optipfair_manifest.json").read_text())
    assert "its structure is checked" in manifest["execution_reason"]
