"""Calibrated pruning out of core keeps the same sets as in memory, and the same weights to 1e-3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optipfair_engine.architectures import locate
from optipfair_engine.calibration import CalibrationSet, as_calibration_set
from optipfair_engine.checkpoints import load_model, load_pruned
from optipfair_engine.errors import CalibrationError, EngineError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.pruning import make_plan
from optipfair_engine.workflow import prune_checkpoint
from optipfair_engine.workflow.prune.out_of_core import plan_out_of_core
from tests.numbers import assert_near

REFIT = {"compensation": "least_squares", "verify": "structure"}
ALLOCATED: dict[str, Any] = {"verify": "structure", "allocation": "allocated"}
CASES = [
    ("llama", {"pruning_percentage": 30, **REFIT}),
    ("llama", {"pruning_percentage": 30, "neuron_selection_method": "OBS", **REFIT}),
    ("llama", {"pruning_percentage": 30, "verify": "structure"}),
    ("llama", {"pruning_percentage": 30, "neuron_selection_method": "CFSP", "verify": "structure"}),
    ("llama", {"target_parameters": 30_000, "verify": "structure"}),
    ("llama", {"pruning_percentage": 30, "layer_indices": [0, 2], **REFIT}),
    ("llama", {"pruning_type": "ATTENTION", "pruning_percentage": 50, **REFIT}),
    ("llama", {"pruning_type": "ATTENTION", "target_parameters": 33_000, **REFIT}),
    (
        "llama",
        {"pruning_type": "DEPTH", "num_layers_to_remove": 1, "layer_selection_method": "importance", **REFIT},
    ),
    ("llama", {"pruning_percentage": 30, "preset": "recommended", **ALLOCATED}),
    ("phi3", {"pruning_percentage": 30, "preset": "recommended", **ALLOCATED}),
    ("phi3", {"pruning_percentage": 30, "neuron_selection_method": "OBS", **REFIT}),
    ("gpt2", {"pruning_type": "MLP", "pruning_percentage": 30, "neuron_selection_method": "OBS", **REFIT}),
]


@pytest.fixture
def calibration() -> CalibrationSet:
    """Thirty-two samples in four batches, a few of them padded."""
    generator = torch.Generator().manual_seed(3)
    batches: list[dict[str, Tensor]] = []
    for _ in range(4):
        ids = torch.randint(3, 96, (8, 32), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 20:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return as_calibration_set(batches)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("family", "asked"), CASES, ids=[f"{f}-{i}" for i, (f, _) in enumerate(CASES)])
def test_the_plan_is_that_of_the_in_memory_path(
    checkpoint: Any, calibration: CalibrationSet, tmp_path: Path, family: str, asked: dict[str, Any]
) -> None:
    source, options = checkpoint(family, dtype=torch.float32), PruneOptions(**asked)
    expected = make_plan(locate(load_model(source)), options, calibration)
    found = plan_out_of_core(source, options, calibration, tmp_path / "work")
    assert found.kept_neurons == expected.kept_neurons
    assert found.kept_heads == expected.kept_heads
    assert found.removed_layers == expected.removed_layers
    assert found.weights.keys() == expected.weights.keys()
    assert all(relative(found.weights[name], expected.weights[name]) < 1e-3 for name in expected.weights)
    assert found.provenance.pruning_type == expected.provenance.pruning_type
    assert found.provenance.calibration == expected.provenance.calibration
    assert found.provenance.allocation == expected.provenance.allocation
    losses = expected.provenance.allocation_held_out_losses or {}
    assert_near(found.provenance.allocation_held_out_losses or {}, losses, 1e-4)
    assert bool(losses) == (options.preset == "recommended")


def test_the_checkpoint_reloads_and_says_what_it_was_calibrated_on(
    checkpoint: Any, calibration: CalibrationSet, tmp_path: Path
) -> None:
    source = checkpoint("llama")
    options = PruneOptions(pruning_percentage=30, neuron_selection_method="OBS", **REFIT)  # type: ignore[arg-type]
    calibration = as_calibration_set(calibration.batches[:2])
    metrics = prune_checkpoint(
        source, tmp_path / "out", options.changed(execution="streamed"), calibration_texts=calibration
    )
    model = load_pruned(tmp_path / "out")
    assert model.config.intermediate_size == 56
    assert metrics["calibration_tokens"] == calibration.tokens
    assert any("calibration is small" in warning["message"] for warning in metrics["warnings"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama-source", "out"]


def test_another_size_from_the_same_work_folder_needs_no_forward(
    checkpoint: Any, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, work = checkpoint("llama"), tmp_path / "work"
    first = PruneOptions(pruning_percentage=30, neuron_selection_method="OBS", **REFIT)  # type: ignore[arg-type]
    plan_out_of_core(source, first, calibration, work)

    def fail(*_: object) -> None:
        raise RuntimeError("a layer was run")

    monkeypatch.setattr("optipfair_engine.streaming.layerwise.run.step", fail)
    second = PruneOptions(pruning_percentage=50, neuron_selection_method="OBS", **REFIT)  # type: ignore[arg-type]
    plan = plan_out_of_core(source, second, calibration, work)
    assert {len(kept) for kept in plan.kept_neurons.values()} == {40}


def test_widths_are_compared_once_for_a_work_folder(
    checkpoint: Any, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, work = checkpoint("llama"), tmp_path / "work"
    first = PruneOptions(
        pruning_percentage=30, preset="recommended", verify="structure", allocation="allocated"
    )
    compared = plan_out_of_core(source, first, calibration, work).provenance
    assert set(compared.allocation_held_out_losses or ()) == {"uniform", "importance", "curves"}

    def fail(*_: object) -> None:
        raise RuntimeError("text was scored")

    monkeypatch.setattr("optipfair_engine.evaluation.perplexity.score_windows", fail)
    second = PruneOptions(
        pruning_percentage=50, preset="recommended", verify="structure", allocation="allocated"
    )
    again = plan_out_of_core(source, second, calibration, work).provenance
    assert (again.allocation, again.allocation_compared) == (compared.allocation, False)
    (work / "allocation.json").write_text("{")
    with pytest.raises(CalibrationError, match=r"allocation\.json in the work folder can't be read"):
        plan_out_of_core(source, second, calibration, work)


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        ("llama", {"neuron_selection_method": "VOW"}, "only supported for the MAW method"),
        ("llama", {"target_parameters": 10, **REFIT}, "target_parameters: removing neurons alone leaves"),
        ("llama", {"pruning_type": "MLP"}, "gated MLP"),
        ("llama", {"expansion_divisor": 128, **REFIT}, "larger than the layer's 80 neurons"),
        ("gpt2", {"pruning_type": "ATTENTION", "pruning_percentage": 50, **REFIT}, "heads can't be removed"),
    ],
)
def test_options_are_checked_before_a_layer_is_run(
    checkpoint: Any,
    calibration: CalibrationSet,
    tmp_path: Path,
    family: str,
    asked: dict[str, Any],
    message: str,
) -> None:
    options = PruneOptions(**{"verify": "structure", **asked})
    with pytest.raises(EngineError, match=message):
        prune_checkpoint(
            checkpoint(family),
            tmp_path / "out",
            options,
            calibration_texts=calibration,
            work=tmp_path / "work",
        )
    assert not (tmp_path / "work").exists()


def test_refitted_weights_lie_in_files_until_the_plan_is_applied(
    checkpoint: Any, calibration: CalibrationSet, tmp_path: Path
) -> None:
    options = PruneOptions(pruning_percentage=30, **REFIT)  # type: ignore[arg-type]
    work = tmp_path / "work"
    plan = plan_out_of_core(checkpoint("llama"), options, calibration, work)
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert mapped.count(f"{work}/tmp") == len(plan.weights) == 3
    assert not list(work.glob("tmp*"))
