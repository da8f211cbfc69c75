"""Layer by layer, calibration sees what it sees on a model in memory, and goes on where it was killed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optipfair_engine.architectures import locate
from optipfair_engine.calibration.accumulators import CosineImportance, Gram, SquaredNorm
from optipfair_engine.calibration.runner import capture_sites
from optipfair_engine.checkpoints import load_model
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.streaming.layerwise import calls as calls_module
from optipfair_engine.streaming.layerwise.run import capture_layerwise, open_checkpoint

WANTED: dict[Any, Any] = {
    "down_proj": (range(3), Gram),
    "o_proj": ([0, 2], SquaredNorm),
    "layer": (range(3), CosineImportance),
}


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    """Twenty samples in three batches, some of them padded."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for samples, tokens in ((8, 24), (8, 40), (4, 24)):
        ids = torch.randint(3, 96, (samples, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, tokens // 2 :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were run, in order."""
    seen: list[int] = []
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(module).__name__.endswith("DecoderLayer"):
            seen.append(module.self_attn.layer_idx)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", call)
    return seen


def results(captured: Any) -> dict[Any, Any]:
    return {
        (site, part, layer): accumulator.result()
        for site in WANTED
        for part in ("fit", "held")
        for layer, accumulator in getattr(captured[site], part).items()
    }


def close(a: Any, b: Any) -> bool:
    """Sums of products are as exact as the largest of them; an importance, 1 − a cosine, as the cosine."""
    found, expected = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    scale = float(expected.abs().max()) if expected.ndim else 1e-2
    return bool((found - expected).abs().max() <= 1e-4 * scale)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulators_see_what_they_see_in_memory(
    checkpoint: Any, batches: Any, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    source = checkpoint(family, dtype=dtype)
    expected = results(capture_sites(locate(load_model(source)), batches, WANTED))
    found = results(capture_layerwise(source, batches, WANTED, tmp_path / "work"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert close(found[key], value), key


def test_sliding_windows_and_layer_types_are_the_models_own(
    checkpoint: Any, batches: Any, tmp_path: Path
) -> None:
    source = checkpoint(
        "gemma2", sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    expected = results(capture_sites(locate(load_model(source)), batches, WANTED))
    found = results(capture_layerwise(source, batches, WANTED, tmp_path / "work"))
    assert all(close(found[key], value) for key, value in expected.items())


def test_a_killed_run_goes_on_and_runs_no_layer_again(
    checkpoint: Any, batches: Any, tmp_path: Path, forwards: list[int]
) -> None:
    source, work = checkpoint("llama", dtype=torch.float32), tmp_path / "work"
    whole = results(capture_layerwise(source, batches, WANTED, tmp_path / "other"))
    forwards.clear()

    def die(stage: str, done: int, total: int, message: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_layerwise(source, batches, WANTED, work, report=die)
    assert forwards == [0] * 3 + [1] * 3
    forwards.clear()
    resumed = results(capture_layerwise(source, batches, WANTED, work))
    assert forwards == [2] * 3
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(torch.as_tensor(resumed[key]), torch.as_tensor(whole[key])) for key in whole)
    forwards.clear()
    capture_layerwise(source, batches, WANTED, work)
    assert forwards == []


@pytest.mark.parametrize("moment", ["before the layer's file", "before the progress", "after the progress"])
def test_a_kill_while_saving_loses_at_most_that_layer(
    checkpoint: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from optipfair_engine.streaming.layerwise import state as layerwise_state

    source, work = checkpoint("llama", dtype=torch.float32), tmp_path / "work"
    whole = results(capture_layerwise(source, batches, WANTED, tmp_path / "other"))
    with monkeypatch.context() as patch:
        saves: list[Any] = []
        original: Callable[..., None] = layerwise_state.save_file
        limit = {"before the layer's file": 2, "before the progress": 3}.get(moment)

        def save(tensors: Any, path: Any, **kwargs: Any) -> None:
            saves.append(path)
            if len(saves) == (limit or 99):
                path.write_bytes(b"torn")
                raise KeyboardInterrupt
            original(tensors, path, **kwargs)

        patch.setattr(layerwise_state, "save_file", save)
        if limit is None:

            def unlink(*_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            capture_layerwise(source, batches, WANTED, work)
    resumed = results(capture_layerwise(source, batches, WANTED, work))
    assert all(torch.equal(torch.as_tensor(resumed[key]), torch.as_tensor(whole[key])) for key in whole)


def test_the_state_of_another_run_is_refused(checkpoint: Any, batches: Any, tmp_path: Path) -> None:
    source, work = checkpoint("llama"), tmp_path / "work"
    capture_layerwise(source, batches, WANTED, work)
    for other in (
        batches[:2],
        [batches[0], {**batches[1], "input_ids": batches[1]["input_ids"] + 1 - 1}, batches[2]],
    ):
        if len(other) == len(batches):
            other[1]["input_ids"][0, 0] = 4
        with pytest.raises(CalibrationError, match="another run"):
            capture_layerwise(source, other, WANTED, work)


def test_only_the_layers_that_are_needed_are_run(
    checkpoint: Any, batches: Any, tmp_path: Path, forwards: list[int]
) -> None:
    capture_layerwise(checkpoint("llama"), batches, {"down_proj": ([0], Gram)}, tmp_path / "work")
    assert set(forwards) == {0}


def test_a_mapped_model_gives_the_same_logits_from_files(checkpoint: Any, batches: Any) -> None:
    source = checkpoint("llama")
    view, reference = open_checkpoint(source), load_model(source)
    with torch.no_grad():
        assert torch.equal(view.model(**batches[0]).logits, reference(**batches[0]).logits)


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match="t5"):
        open_checkpoint(tmp_path / "t5")


def test_the_masks_of_one_batch_at_a_time_are_in_memory(
    checkpoint: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = calls_module._record, list[weakref.ref[Any]]()

    def record(*arguments: Any) -> Any:
        assert sum(call() is not None for call in calls) <= 1
        call = original(*arguments)
        calls.append(weakref.ref(call))
        return call

    monkeypatch.setattr(calls_module, "_record", record)
    capture_layerwise(checkpoint("llama"), batches, WANTED, tmp_path / "work")
    assert len(calls) == 3 * len(batches)
