"""Calibrated width pruning: better than none, predicted as measured, and the same from kept statistics."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch
from transformers import LlamaForCausalLM

from optipfair_engine import prune_model
from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import CalibrationSet, as_calibration_set
from optipfair_engine.calibration.statistics import GramStatistics, gather_statistics
from optipfair_engine.errors import CalibrationError, InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.pruning.gathering import Gatherer
from optipfair_engine.pruning.planner import make_calibrated_plan
from optipfair_engine.pruning.width.calibrated import SELECTION_RIDGE, SELECTION_SCALE
from optipfair_engine.solving.refit import ridge_diagonal, solve_least_squares
from tests.numbers import assert_near, logits_on, relative_error
from tests.tiny import tiny_model

RECOMMENDED = PruneOptions(preset="recommended", pruning_percentage=30)
ALLOCATED = RECOMMENDED.changed(allocation="allocated")
OBS = PruneOptions(neuron_selection_method="OBS", compensation="least_squares", pruning_percentage=30)


def test_api_call_of_the_guide_page(model: LlamaForCausalLM, calibration: CalibrationSet) -> None:
    pruned, stats = prune_model(
        model,
        neuron_selection_method="OBS",
        compensation="least_squares",
        pruning_percentage=30,
        dataloader=calibration.batches,
        show_progress=False,
        return_stats=True,
    )
    assert {layer.mlp.down_proj.in_features for layer in pruned.model.layers} == {28}
    assert model.model.layers[0].mlp.down_proj.in_features == 40
    assert stats["calibration_tokens"] == calibration.tokens


def test_fast_is_the_refit_of_scores_by_activations(
    model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    common = {"pruning_percentage": 30, "dataloader": calibration, "show_progress": False}
    fast = prune_model(model, preset="fast", **common).state_dict()
    spelt = prune_model(model, neuron_selection_method="MAW", compensation="least_squares", **common)
    assert all(torch.equal(fast[name], tensor) for name, tensor in spelt.state_dict().items())


def test_refit_beats_the_same_selection_without_it(
    model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    common = {"pruning_percentage": 30, "dataloader": calibration, "show_progress": False}
    plain = prune_model(model, neuron_selection_method="MAW", **common)
    refitted = prune_model(model, neuron_selection_method="MAW", compensation="least_squares", **common)
    by_obs = prune_model(model, neuron_selection_method="OBS", compensation="least_squares", **common)
    errors = [relative_error(model, other, calibration) for other in (plain, refitted, by_obs)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.parametrize("percent", [10, 30, 50])
def test_predicted_error_is_the_measured_one(
    view: ModelView, model: LlamaForCausalLM, calibration: CalibrationSet, percent: int
) -> None:
    options = PruneOptions(
        neuron_selection_method="OBS", compensation="least_squares", pruning_percentage=percent
    )
    found = make_calibrated_plan(view, options, calibration)
    assert found.statistics is not None
    assert found.plan.curves is not None
    for layer in range(view.num_layers):
        kept = torch.tensor(found.plan.kept_neurons[layer])
        weight = view.mlp(layer).down_weight.detach()
        inputs: list[torch.Tensor] = []
        handle = view.mlp(layer).down_module.register_forward_pre_hook(
            lambda _m, a, seen=inputs: seen.append(a[0].detach().flatten(0, 1))
        )
        logits_on(model, calibration)
        handle.remove()
        x = torch.cat(inputs)
        gram = found.statistics.total(layer)
        diagonal = ridge_diagonal(gram, SELECTION_SCALE)
        solved = solve_least_squares(weight, gram, kept, SELECTION_RIDGE, diagonal=diagonal).float()
        dense = x @ weight.T
        measured = float((dense - x[:, kept] @ solved.T).square().sum() / dense.square().sum())
        assert found.plan.curves[layer][40 - len(kept)] == pytest.approx(measured, rel=0.02)


def test_batching_changes_nothing(model: LlamaForCausalLM, calibration: CalibrationSet) -> None:
    whole = {
        key: torch.cat([batch[key] for batch in calibration.batches])
        for key in ("input_ids", "attention_mask")
    }
    plans = [
        make_calibrated_plan(
            locate(model), OBS, CalibrationSet(batches, calibration.tokens, "random", 32)
        ).plan
        for batches in (calibration.batches, [whole])
    ]
    assert plans[0].kept_neurons == plans[1].kept_neurons
    for name, weight in plans[0].weights.items():
        assert_near(plans[1].weights[name], weight, 1e-3)


def test_allocated_widths_of_the_preset_are_compared_and_keep_the_budget(
    view: ModelView, model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    plan = make_calibrated_plan(view, ALLOCATED, calibration).plan
    losses = plan.provenance.allocation_held_out_losses
    assert losses is not None
    assert set(losses) == {"uniform", "importance", "curves"}
    assert plan.provenance.allocation == min(losses, key=lambda name: losses[name])
    widths = {i: len(plan.kept_neurons.get(i, range(40))) for i in range(4)}
    assert sum(widths.values()) == 4 * 28
    apply_plan(model, plan)


def test_recommended_writes_equal_widths_and_says_what_allocated_ones_would_have_gained(
    view: ModelView, calibration: CalibrationSet
) -> None:
    plan = make_calibrated_plan(view, RECOMMENDED, calibration).plan
    errors = plan.provenance.allocation_predicted_errors
    assert errors is not None and 0 < errors["allocated"] <= errors["uniform"]
    means = [sum(curve[12] for curve in (plan.curves or {}).values()) / 4]
    assert means == pytest.approx([errors["uniform"]], rel=1e-4)
    assert plan.provenance.neuron_selection_method == "OBS"
    assert {len(kept) for kept in plan.kept_neurons.values()} == {28}
    assert plan.weights


def test_another_ratio_from_kept_statistics_needs_no_forward(
    view: ModelView, model: LlamaForCausalLM, calibration: CalibrationSet, tmp_path: Path
) -> None:
    first = make_calibrated_plan(view, OBS, calibration)
    assert first.statistics is not None
    first.statistics.save(tmp_path / "statistics.safetensors")
    kept = GramStatistics.load(tmp_path)
    other = PruneOptions(neuron_selection_method="OBS", compensation="least_squares", pruning_percentage=50)
    expected = make_calibrated_plan(view, other, calibration).plan
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    inner = model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = make_calibrated_plan(view, other, None, kept).plan
    handle.remove()
    inner.remove()
    assert calls == []
    assert found.to_json() == expected.to_json()
    assert all(torch.equal(found.weights[n], w) for n, w in expected.weights.items())


def test_missing_statistics_say_what_would_be_needed(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="keep_statistics"):
        GramStatistics.load(tmp_path)


def test_target_parameters_bound_the_result(model: LlamaForCausalLM, calibration: CalibrationSet) -> None:
    dense = sum(p.numel() for p in model.parameters())
    target = int(0.9 * dense)
    for extra in ({}, {"dataloader": calibration, "preset": "recommended"}):
        pruned = prune_model(model, target_parameters=target, show_progress=False, **extra)
        found = sum(p.numel() for p in pruned.parameters())
        assert target - 4 * 72 <= found <= target
    pruned = prune_model(model, target_bytes=4 * target, show_progress=False)
    assert target - 4 * 72 <= sum(p.numel() for p in pruned.parameters()) <= target


def test_conv1d_weights_are_refitted_in_their_own_orientation(calibration: CalibrationSet) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = tiny_model("gpt2", **sizes, max_position_embeddings=32, initializer_range=0.3)
    common = {
        "pruning_type": "MLP",
        "pruning_percentage": 40,
        "show_progress": False,
        "dataloader": calibration,
    }
    plain = prune_model(model, **common)
    refitted = prune_model(model, compensation="least_squares", **common)
    assert refitted.transformer.h[0].mlp.c_proj.weight.shape == (39, 16)
    assert relative_error(model, refitted, calibration) < relative_error(model, plain, calibration)


def test_selective_layers_leave_the_others(view: ModelView, calibration: CalibrationSet) -> None:
    options = PruneOptions(
        neuron_selection_method="OBS",
        compensation="least_squares",
        pruning_percentage=30,
        layer_indices=[1, 3],
    )
    plan = make_calibrated_plan(view, options, calibration).plan
    assert set(plan.kept_neurons) == {1, 3}
    assert len(plan.weights) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neuron_selection_method": "OBS"}, "compensation"),
        ({"compensation": "least_squares"}, "calibration"),
        ({"allocation": "allocated"}, "calibration"),
    ],
)
def test_contradictions_are_refused(model: LlamaForCausalLM, options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        prune_model(model, show_progress=False, **options)


def test_recommended_without_calibration_lets_the_model_write_it_and_says_so(
    model: LlamaForCausalLM,
) -> None:
    own = {"num_samples": 8, "max_length": 12, "show_progress": False, "return_stats": True}
    with pytest.warns(UserWarning, match="calibrated on text that it wrote itself"):
        pruned, stats = prune_model(model, preset="recommended", **own)
    assert "self_calibrated" in [warning["code"] for warning in stats["warnings"]]
    assert (stats["calibration_own_samples"], stats["calibration_tokens"]) == (8, 96)
    asked, _ = prune_model(model, preset="recommended", calibration={"source": "model"}, **own)
    assert all(map(torch.equal, pruned.state_dict().values(), asked.state_dict().values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"calibration": {"source": "model"}, "dataloader": [torch.arange(9)[None]]},
            "writes all of the text",
        ),
        ({"mix_self": 0.5}, "adds the model's own text to calibration text"),
        ({"mix_self": 1.0, "dataloader": [torch.arange(9)[None]]}, "mix_self must be below 1"),
        ({"calibration": {"source": "book"}}, "source"),
        ({"num_samples": 8, "dataloader": [torch.arange(9)[None]]}, "'num_samples' without calibration"),
    ],
)
def test_what_does_not_go_with_own_text_is_refused(
    model: LlamaForCausalLM, options: dict[str, object], message: str
) -> None:
    with pytest.raises((InvalidOptionError, TypeError), match=message):
        prune_model(model, show_progress=False, **options)


def test_small_calibration_warns_in_the_result(model: LlamaForCausalLM) -> None:
    _, stats = prune_model(
        model,
        preset="recommended",
        dataloader=[torch.arange(20)[None]],
        show_progress=False,
        return_stats=True,
    )
    assert any(
        "calibration is small: 20 tokens are 0.5 per feature" in w["message"] for w in stats["warnings"]
    )


def _few(calibration: CalibrationSet) -> CalibrationSet:
    return as_calibration_set([{name: part[:5] for name, part in calibration.batches[0].items()}])


@pytest.mark.parametrize(
    ("case", "said"),
    [("headless", "no causal language model"), ("few samples", "at least 8 calibration samples")],
)
def test_widths_that_can_not_be_compared_are_taken_by_importance_and_said_so(
    model: LlamaForCausalLM, calibration: CalibrationSet, case: str, said: str
) -> None:
    given = model.model if case == "headless" else model
    _, stats = prune_model(
        given,
        preset="recommended",
        allocation="allocated",
        pruning_percentage=30,
        dataloader=_few(calibration) if case == "few samples" else calibration,
        show_progress=False,
        return_stats=True,
    )
    texts = [warning["message"] for warning in stats["warnings"]]
    assert any("not compared with equal ones" in text and said in text for text in texts)


def test_an_impossible_option_is_refused_before_anything_is_gathered(
    view: ModelView, calibration: CalibrationSet
) -> None:
    class Never(Gatherer):
        def grams(self, *_: object) -> NoReturn:  # type: ignore[override]
            raise AssertionError("statistics were gathered")

        norms = grams  # type: ignore[assignment]

    for asked in (
        {"neuron_selection_method": "VOW"},
        {"target_parameters": 10},
        {"expansion_divisor": 64},
        {"pruning_type": "MLP"},
        {"target_parameters": 10, "compensation": "least_squares"},
        {"expansion_divisor": 64, "preset": "recommended"},
        {"pruning_type": "ATTENTION", "target_bytes": 10, "compensation": "least_squares"},
    ):
        with pytest.raises((InvalidOptionError, UnsupportedModelError)):
            make_calibrated_plan(view, PruneOptions(**asked), calibration, gatherer=Never())  # type: ignore[arg-type]


def test_statistics_of_a_model_in_memory_are_the_sums_themselves(
    view: ModelView, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optipfair_engine.calibration.accumulators.Tensor.clone", None)
    found = gather_statistics(view, calibration, [0, 1])
    assert found.fit[0].shape == found.held[1].shape == (40, 40)
