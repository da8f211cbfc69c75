"""Heads by least-squares error, layers by importance or perplexity, and what their refits give."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from transformers import LlamaForCausalLM

from optipfair_engine import prune_model
from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import CalibrationSet, Gram, as_calibration_set, capture
from optipfair_engine.errors import CalibrationError, InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.options.words import LayerSelectionMethod
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.pruning.attention import by_refit as attention_refit
from optipfair_engine.pruning.attention.by_refit import RemovalCost, head_columns, select_heads
from optipfair_engine.pruning.cautions import plan_cautions
from optipfair_engine.pruning.depth.neighbour_refit import (
    greedy_perplexity_layers,
    neighbour_refits,
    neighbours,
)
from optipfair_engine.pruning.planner import make_calibrated_plan
from optipfair_engine.solving.refit import output_error, quadratic, solve_least_squares
from tests.numbers import assert_near, logits_on, relative_error
from tests.tiny import tiny_llama, tiny_model


@pytest.fixture
def o_proj(view: ModelView, calibration: CalibrationSet) -> tuple[torch.Tensor, torch.Tensor]:
    return view.attention(1).o_weight.detach(), capture(view, calibration.batches, [1], Gram, "o_proj")[
        1
    ].result()


def test_cost_of_a_set_is_the_error_of_its_refit(o_proj: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, gram = o_proj
    kept = [*range(8), *range(16, 40)]
    gone = [i for i in range(48) if i not in kept]
    refitted = solve_least_squares(weight, gram, kept)
    expected = output_error(weight, gram, kept, refitted) * quadratic(weight, gram)
    assert RemovalCost(weight, gram, 0.0)(gone) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("limit", [256, 0], ids=["exhaustive", "greedy with swaps"])
@pytest.mark.parametrize(("unit", "kept"), [("query_head", 2), ("query_head", 1), ("kv_group", 1)])
def test_the_chosen_heads_are_the_best_of_all(
    o_proj: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    unit: str,
    kept: int,
) -> None:
    weight, gram = o_proj
    monkeypatch.setattr(attention_refit, "EXHAUSTIVE_LIMIT", limit)
    found = select_heads(weight, gram, num_heads=6, num_key_value_heads=2, unit=unit, kept=kept, ridge=0.0)

    def error(heads: tuple[int, ...]) -> float:
        columns = [8 * h + i for h in heads for i in range(8)]
        return output_error(weight, gram, columns, solve_least_squares(weight, gram, columns))

    if unit == "kv_group":
        options = [tuple(range(3 * g, 3 * g + 3)) for g in range(2)]
    else:
        halves = (itertools.combinations(range(3), kept), itertools.combinations(range(3, 6), kept))
        options = [a + b for a, b in itertools.product(*halves)]
    assert found.query == min(options, key=error)


def test_head_columns_follow_the_heads(o_proj: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = select_heads(*o_proj, num_heads=6, num_key_value_heads=2, unit="query_head", kept=1)
    assert head_columns(found, 8).tolist() == [8 * h + i for h in found.query for i in range(8)]


@pytest.mark.parametrize("unit", ["query_head", "kv_group"])
def test_refitted_attention_beats_weight_norm(
    model: LlamaForCausalLM, calibration: CalibrationSet, unit: str
) -> None:
    common = {
        "pruning_type": "ATTENTION",
        "pruning_percentage": 50,
        "attention_unit": unit,
        "show_progress": False,
    }
    static = prune_model(model, **common)
    refitted = prune_model(model, compensation="least_squares", dataloader=calibration, **common)
    assert refitted.config.num_attention_heads == static.config.num_attention_heads
    assert relative_error(model, refitted, calibration) < relative_error(model, static, calibration)


def test_calibrated_attention_without_refit_is_refused(
    model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    with pytest.raises(InvalidOptionError, match="least_squares"):
        prune_model(model, pruning_type="ATTENTION", dataloader=calibration, show_progress=False)


def test_neighbours_of_runs() -> None:
    assert neighbours([3, 4, 7]) == {2: 4, 6: 7}
    assert neighbours([0, 1, 5]) == {4: 5}
    assert neighbours([0]) == {}


def test_neighbour_refit_is_the_least_squares_solution_for_the_stream(
    view: ModelView, model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    seen: dict[str, list[torch.Tensor]] = {"x": [], "p": [], "b": []}
    down, layers = model.model.layers[1].mlp.down_proj, model.model.layers
    handles = [
        down.register_forward_pre_hook(lambda _m, a: seen["x"].append(a[0].flatten(0, 1))),
        layers[1].register_forward_hook(lambda _m, _a, out: seen["p"].append(out.flatten(0, 1))),
        layers[2].register_forward_hook(lambda _m, _a, out: seen["b"].append(out.flatten(0, 1))),
    ]
    logits_on(model, calibration)
    for handle in handles:
        handle.remove()
    x, p, b = (torch.cat(seen[key]).double() for key in ("x", "p", "b"))
    found = neighbour_refits(view, calibration.batches, [2], holdout_every=None)[1]
    weight = down.weight.detach().double()
    damp = found.ridge * float((x.T @ x).diagonal().median()) * torch.eye(40, dtype=torch.float64)
    target = b - p + x @ weight.T
    expected = torch.linalg.solve(x.T @ x + damp, x.T @ target + damp @ weight.T).T
    assert_near(found.weight, expected, 1e-3)
    change = x @ (found.weight.double() - weight).T
    measured = float((b - p - change).square().sum() / (b - p).square().sum())
    assert found.error == pytest.approx(measured, rel=1e-3)
    assert found.error < 1


def test_refitted_depth_beats_plain_removal(model: LlamaForCausalLM, calibration: CalibrationSet) -> None:
    common = {"pruning_type": "DEPTH", "layer_indices": [2], "show_progress": False}
    plain = prune_model(model, **common)
    refitted = prune_model(model, compensation="least_squares", dataloader=calibration, **common)
    assert sum(p.numel() for p in refitted.parameters()) == sum(p.numel() for p in plain.parameters())
    assert relative_error(model, refitted, calibration) < relative_error(model, plain, calibration)


def test_importance_removes_the_layer_that_does_least(
    model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    idle = copy.deepcopy(model)
    with torch.no_grad():
        idle.model.layers[2].mlp.down_proj.weight.mul_(1e-3)
        idle.model.layers[2].self_attn.o_proj.weight.mul_(1e-3)
    options = PruneOptions(preset="recommended", pruning_type="DEPTH", num_layers_to_remove=1)
    plan = make_calibrated_plan(locate(idle), options, calibration).plan
    assert plan.removed_layers == (2,)
    assert plan.provenance.refitted_layers == (1,)
    assert relative_error(idle, apply_plan(idle, plan), calibration) < 1e-3


def test_greedy_removes_what_costs_least_each_time(view: ModelView, model: LlamaForCausalLM) -> None:
    ids = torch.arange(24)[None]

    def loss() -> float:
        with torch.no_grad():
            return float(model(ids, labels=ids).loss)

    def without(*gone: int) -> float:
        pruned = prune_model(model, pruning_type="DEPTH", layer_indices=list(gone), show_progress=False)
        with torch.no_grad():
            return float(pruned(ids, labels=ids).loss)

    first = min(range(4), key=without)
    second = min((i for i in range(4) if i != first), key=lambda i: without(first, i))
    assert greedy_perplexity_layers(view, 2, loss) == tuple(sorted((first, second)))
    assert all(not m._forward_hooks for m in model.modules())


def test_a_norm_behind_the_mlp_refuses_the_refit(calibration: CalibrationSet) -> None:
    torch.manual_seed(0)
    model = tiny_model("gemma2", hidden_size=24, intermediate_size=40, num_hidden_layers=3, head_dim=8)
    with pytest.raises(UnsupportedModelError, match=r"gemma2.*doesn't simply add"):
        neighbour_refits(locate(model), calibration.batches, [1])


def test_recommended_attention_without_grouped_queries_removes_whole_heads(
    calibration: CalibrationSet,
) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_key_value_heads": 4}
    model = tiny_llama(**sizes, initializer_range=0.25)
    common = {"pruning_type": "ATTENTION", "pruning_percentage": 50, "show_progress": False}
    pruned = prune_model(model, preset="recommended", dataloader=calibration, **common)
    assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == (2, 2)


@pytest.mark.parametrize("method", ["importance", "greedy_perplexity"])
def test_depth_pruning_skips_samples_without_tokens(
    view: ModelView, calibration: CalibrationSet, method: LayerSelectionMethod
) -> None:
    blank = {name: torch.zeros_like(part[:2]) for name, part in calibration.batches[0].items()}
    single = {"input_ids": torch.ones(1, 1, dtype=torch.int64)}
    options = PruneOptions(
        pruning_type="DEPTH",
        num_layers_to_remove=1,
        layer_selection_method=method,
        compensation="least_squares",
    )
    few = as_calibration_set([blank, single, *calibration.batches[:1]])
    assert len(make_calibrated_plan(view, options, few).plan.removed_layers) == 1
    if method == "greedy_perplexity":
        with pytest.raises(CalibrationError, match="at least two tokens"):
            make_calibrated_plan(view, options, as_calibration_set([blank, single]))


def test_layers_that_go_from_the_start_on_are_said_to_have_no_refit(
    view: ModelView, calibration: CalibrationSet
) -> None:
    options = PruneOptions(pruning_type="DEPTH", layer_indices=[0], compensation="least_squares")
    plan = make_calibrated_plan(view, options, calibration).plan
    assert not plan.weights
    assert any(
        caution.code == "first_layer_removed" and "no layer before them" in caution.message
        for caution in plan_cautions(plan, calibrated=True)
    )


def test_depth_pruning_has_no_statistics_to_keep() -> None:
    with pytest.raises(InvalidOptionError, match="keep_statistics can't be used with pruning_type DEPTH"):
        PruneOptions(
            pruning_type="DEPTH", num_layers_to_remove=1, compensation="least_squares", keep_statistics=True
        )
