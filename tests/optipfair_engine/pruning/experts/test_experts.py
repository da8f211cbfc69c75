"""Whole experts: scored as the papers say, removed as the router allows, and refused where it doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from optipfair_engine.architectures import locate
from optipfair_engine.calibration import as_calibration_set, capture
from optipfair_engine.calibration.experts import ExpertScores
from optipfair_engine.checkpoints.loading import quiet_progress
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.errors import (
    CalibrationError,
    EngineError,
    InvalidOptionError,
    PlanError,
    UnsupportedModelError,
)
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.pruning import make_plan, prune_model
from optipfair_engine.pruning.curves import replan
from tests.numbers import assert_near
from tests.optipfair_engine.families.checks import never_chosen
from tests.tiny import tiny_model

GROUPED: dict[str, Any] = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


@pytest.fixture
def mixture() -> PreTrainedModel:
    return tiny_model(
        "mixtral", num_local_experts=8, num_experts_per_tok=2, num_hidden_layers=3, initializer_range=0.3
    )


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 64, (6, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    return [
        {"input_ids": ids[:4], "attention_mask": mask[:4]},
        {"input_ids": ids[4:], "attention_mask": mask[4:]},
    ]


def prune(model: PreTrainedModel, batches: Any, **options: Any) -> PreTrainedModel:
    pruned: PreTrainedModel = prune_model(
        model, "EXPERTS", dataloader=batches, show_progress=False, **options
    )
    return pruned


def _by_hand(model: PreTrainedModel, batches: list[dict[str, Tensor]], layer: int) -> tuple[Tensor, Tensor]:
    """(REAP, frequency) of one layer of a Mixtral, token by token, from its weights."""
    block = model.model.layers[layer].mlp
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    total, counts = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            seen.clear()
            model(**batch)
            for x in seen[0][batch["attention_mask"].bool()]:
                gates, chosen = torch.softmax(block.gate.weight @ x, 0).topk(2)
                for gate, expert in zip(gates / gates.sum(), chosen, strict=True):
                    a, b = (block.experts.gate_up_proj[expert] @ x).chunk(2)
                    y = block.experts.down_proj[expert] @ (torch.nn.functional.silu(a) * b)
                    total[expert] += float(gate * y.norm())
                    counts[expert] += 1
    handle.remove()
    return total / counts.clamp(min=1), counts


def test_scores_are_those_of_the_paper_over_unmasked_tokens(
    mixture: PreTrainedModel, batches: list[dict[str, Tensor]]
) -> None:
    view = locate(mixture)
    found = capture(view, batches, [0, 2], lambda: ExpertScores(8), "experts")
    for layer, measured in found.items():
        reap, frequency = _by_hand(mixture, batches, layer)
        assert torch.equal(measured.frequency(), frequency)
        assert_near(measured.reap(), reap)
        assert float(frequency.sum()) == 2 * (6 * 20 - 13)
    apart = [
        {name: tensor[i : i + 1] for name, tensor in b.items()}
        for b in batches
        for i in range(len(b["input_ids"]))
    ]
    again = capture(view, apart, [0, 2], lambda: ExpertScores(8), "experts")
    assert_near(again[2].reap(), found[2].reap())
    assert torch.equal(again[2].frequency(), found[2].frequency())


@pytest.mark.parametrize("method", ["REAP", "FREQUENCY"])
def test_the_experts_of_the_lowest_score_go(
    mixture: PreTrainedModel, batches: list[dict[str, Tensor]], method: str
) -> None:
    options = PruneOptions(pruning_type="EXPERTS", pruning_percentage=50, expert_selection_method=method)
    plan = make_plan(locate(mixture), options, as_calibration_set(batches))
    for layer, kept in plan.kept_experts.items():
        scores = _by_hand(mixture, batches, layer)[0 if method == "REAP" else 1]
        assert len(kept) == 4
        gone = sorted(set(range(8)) - set(kept))
        assert scores[list(kept)].min() >= scores[gone].max()
    assert sorted(plan.kept_experts) == [0, 1, 2]
    assert plan.provenance.expert_selection_method == method
    assert plan.provenance.pruning_percentage == 50
    assert plan.provenance.calibration is not None
    assert plan.provenance.calibration.tokens_per_feature == round(107 * 2 / 8, 2)
    assert any("27 tokens on average" in text for text in plan.provenance.calibration.warnings)


def test_the_result_loads_with_plain_transformers_and_says_its_size(
    mixture: PreTrainedModel, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    mixture.model.layers[0].mlp.experts.down_proj.requires_grad_(False)
    pruned = prune(mixture, batches, pruning_percentage=25)
    assert (pruned.config.num_local_experts, pruned.num_experts) == (6, 6)
    assert mixture.config.num_local_experts == 8
    first = pruned.model.layers[0].mlp
    assert (first.gate.num_experts, first.experts.num_experts) == (6, 6)
    assert not first.experts.down_proj.requires_grad and first.experts.gate_up_proj.requires_grad
    pruned.save_pretrained(tmp_path)
    with quiet_progress():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = [list(range(3, 30))]
    assert torch.equal(model_logits(loaded, tokens), model_logits(pruned, tokens))


@pytest.mark.parametrize(("percentage", "kept"), [(50, 4), (25, 6)])
def test_groups_of_experts_stay_of_equal_size(
    batches: list[dict[str, Tensor]], percentage: float, kept: int
) -> None:
    model = tiny_model("deepseek_v3", **GROUPED, initializer_range=0.3)
    pruned = prune(model, batches, pruning_percentage=percentage)
    experts = locate(pruned).experts(1)
    assert experts.num_experts == kept == pruned.config.n_routed_experts
    rows = locate(model).experts(1).router.weight
    origin = [int((rows == row).all(dim=1).nonzero()) for row in experts.router.weight]
    assert sum(number < 4 for number in origin) == kept // 2
    tokens = [list(range(3, 30))]
    assert_near(model_logits(pruned, tokens), model_logits(never_chosen(model, pruned), tokens))


@pytest.mark.parametrize(
    ("percentage", "reason"),
    [
        (
            12.5,
            r"leaves 7 of 8 experts, but the router needs 2 groups of equal size .* 4 \(50 %\), 6 \(25 %\)",
        ),
        (75, "judges each of 2 groups by its 2 best experts"),
        (90, r"each token is sent to 2 \(num_experts_per_tok\)"),
    ],
)
def test_what_a_router_can_not_choose_from_is_refused(
    batches: list[dict[str, Tensor]], percentage: float, reason: str
) -> None:
    model = tiny_model("deepseek_v3", **GROUPED)
    with pytest.raises(InvalidOptionError, match=f"deepseek_v3: pruning_percentage .*{reason}"):
        prune(model, batches, pruning_percentage=percentage)


def test_a_target_takes_the_fewest_experts_that_suffice(
    mixture: PreTrainedModel, batches: list[dict[str, Tensor]]
) -> None:
    whole = sum(parameter.numel() for parameter in mixture.parameters())
    each = 3 * (3 * 32 * 48 + 32)
    pruned = prune(mixture, batches, target_parameters=whole - each - 1)
    assert pruned.config.num_local_experts == 6
    assert sum(parameter.numel() for parameter in pruned.parameters()) == whole - 2 * each
    with pytest.raises(InvalidOptionError, match="can't be reached by removing experts: at least"):
        prune(mixture, batches, target_parameters=whole - 7 * each)


def test_experts_that_no_token_was_sent_to_go_first_and_are_told(mixture: PreTrainedModel) -> None:
    few = [{"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.int64)}]
    _, stats = prune_model(
        mixture, "EXPERTS", pruning_percentage=25, dataloader=few, show_progress=False, return_stats=True
    )
    told = {warning["code"]: warning["message"] for warning in stats["warnings"]}
    assert "no calibration token was sent to some experts" in told["experts_unseen"]
    assert (stats["original_expert_count"], stats["final_expert_count"]) == (8, 6)
    assert stats["pruned_layers"] == 3


def test_a_plan_is_kept_and_made_anew_without_a_pass(
    mixture: PreTrainedModel, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    view, calibration = locate(mixture), as_calibration_set(batches)
    made = make_plan(view, PruneOptions(pruning_type="EXPERTS", pruning_percentage=25), calibration)
    made.save(tmp_path)
    read = PruningPlan.load(tmp_path)
    assert read.to_json() == made.to_json()
    other = replan(view, PruneOptions(pruning_percentage=50), read, None)
    asked = PruneOptions(pruning_type="EXPERTS", pruning_percentage=50)
    assert other.to_json() == make_plan(view, asked, calibration).to_json()
    with pytest.raises(InvalidOptionError, match="leaves 1 of 8"):
        replan(view, PruneOptions(pruning_percentage=90), read, None)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({0: (0, 1), 1: (0, 1)}, r"one number holds for all of them"),
        (dict.fromkeys(range(3), (0, 8)), "kept_experts of layer 0 reaches from 0 to 8, but there are 8"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    mixture: PreTrainedModel, kept: dict[int, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        apply_plan(mixture, PruningPlan("mixtral", 3, 32, kept_experts=kept))


def test_a_plan_keeps_one_number_of_experts() -> None:
    with pytest.raises(PlanError, match="same number of experts in every layer"):
        PruningPlan("mixtral", 2, 32, kept_experts={0: (0, 1), 1: (0, 1, 2)})


@pytest.mark.parametrize(
    ("family", "options", "error", "reason"),
    [
        ("llama", {}, UnsupportedModelError, "llama: experts can't be removed: it is no mixture"),
        ("mixtral", {"layer_indices": [0]}, InvalidOptionError, "layer_indices can't be used with"),
        ("mixtral", {"compensation": "least_squares"}, InvalidOptionError, "compensation can't be used with"),
        ("mixtral", {"expansion_rate": 100}, InvalidOptionError, "expansion_rate can't be used with"),
        ("mixtral", {"neuron_selection_method": "L2"}, InvalidOptionError, "neuron_selection_method can't"),
        ("mixtral", {"dataloader": None}, InvalidOptionError, "pruning_type EXPERTS needs calibration data"),
    ],
)
def test_what_can_not_be_done_is_refused(
    batches: Any, family: str, options: dict[str, Any], error: type[EngineError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        prune_model(
            tiny_model(family), "EXPERTS", **{"dataloader": batches, "show_progress": False} | options
        )


def test_a_mixture_without_a_layer_of_experts_is_refused(batches: Any) -> None:
    model = tiny_model("qwen3_moe", mlp_only_layers=[0, 1, 2, 3])
    with pytest.raises(UnsupportedModelError, match="none of its layers has experts"):
        prune(model, batches, pruning_percentage=25)


def test_outputs_that_are_not_finite_are_an_error() -> None:
    scores = ExpertScores(2)
    with pytest.raises(CalibrationError, match="No calibration token"):
        scores.reap()
    scores.update(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        scores.reap()


def test_a_model_in_half_precision_loses_the_same_experts_however_it_is_computed(
    mixture: PreTrainedModel, batches: Any
) -> None:
    from optipfair_engine.computing.asked import computing

    half, kept = mixture.to(torch.bfloat16), []
    for how in ("float32", "checkpoint"):
        with computing(how):
            pruned = prune(half, batches, pruning_percentage=25)
        kept.append(locate(pruned).experts(0).router.weight)
        assert pruned.dtype == torch.bfloat16
    assert torch.equal(*kept)
