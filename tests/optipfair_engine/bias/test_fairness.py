from __future__ import annotations

import json

import pytest
import torch

from optipfair_engine.architectures import locate
from optipfair_engine.bias.fairness import (
    _random_plans,
    fair_plan,
    fairness_scores,
    flat_metrics,
    neuron_bias,
    split_templates,
    utility,
)
from optipfair_engine.calibration import calibration_from_texts
from optipfair_engine.calibration.statistics import gather_statistics
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.pruning.apply import apply_plan
from optipfair_engine.pruning.options import PruneOptions
from optipfair_engine.pruning.refit import output_error, ridge_diagonal, solve_least_squares

LAYER, NEURONS = 1, (3, 11, 30)


@pytest.fixture(scope="module")
def biased(make_llama, tokenizer):
    """Three neurons of one layer answer to "female" and nothing else, and strongly."""
    model = make_llama(seed=7)
    seen: list[torch.Tensor] = []
    mlp = model.model.layers[LAYER].mlp
    handle = mlp.up_proj.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0, 1]))
    with torch.no_grad():
        for text in ("the female doctor walked home", "the male doctor walked home"):
            model(**tokenizer(text, return_tensors="pt"))
        handle.remove()
        direction = seen[0] - seen[1]
        for neuron in NEURONS:
            mlp.gate_proj.weight[neuron] = 6 * direction / direction.norm()
            mlp.up_proj.weight[neuron] = 6 * direction / direction.norm()
    return model


@pytest.fixture(scope="module")
def calibration(tokenizer):
    words = [
        "the",
        "old",
        "man",
        "sat",
        "down",
        "and",
        "she",
        "thought",
        "that",
        "it",
        "was",
        "late",
        ",",
        "he",
        "said",
        ".",
        "they",
        "walked",
        "home",
        "early",
    ]
    texts = [" ".join(words[i % len(words) :] + words[: i % len(words)]) for i in range(64)]
    return calibration_from_texts(texts, tokenizer, max_length=16, num_samples=64, batch_size=8)


def test_half_of_the_templates_are_held_out(templated_pairs) -> None:
    chosen, held = split_templates([*templated_pairs, (templated_pairs[1][0], "the old teacher walked home")])
    assert len(chosen) == 4
    assert len(held) == 5  # the second pair of a held-out template goes with it
    with pytest.raises(InvalidOptionError, match="at least two templates"):
        split_templates(templated_pairs[:1])


def test_edited_neurons_have_the_greatest_bias_and_go_first(
    biased, tokenizer, templated_pairs, calibration
) -> None:
    bias = neuron_bias(biased, tokenizer, templated_pairs)
    assert set(bias[LAYER].topk(3).indices.tolist()) == set(NEURONS)
    view = locate(biased)
    statistics = gather_statistics(view, calibration, [LAYER], "down_proj")
    scores = fairness_scores(view, statistics, bias, weight=100.0)[LAYER]
    assert set(scores.topk(3, largest=False).indices.tolist()) == set(NEURONS)
    alone = fairness_scores(view, statistics, bias, weight=0.0)[LAYER]
    costs = utility(view.mlp(LAYER).down_weight.detach(), statistics.total(LAYER))
    assert torch.equal(alone.argsort(), costs.cpu().argsort())


def test_identical_pairs_have_no_bias_and_leave_the_utility(biased, tokenizer, calibration) -> None:
    pairs = [(f"the {word} man sat",) * 2 for word in ("old", "young", "white", "black")]
    bias = neuron_bias(biased, tokenizer, pairs)
    assert not bias[LAYER].any()
    view = locate(biased)
    statistics = gather_statistics(view, calibration, [LAYER], "down_proj")
    with_weight, without = (fairness_scores(view, statistics, bias, weight=w)[LAYER] for w in (5.0, 0.0))
    assert torch.equal(with_weight, without)


def test_the_utility_is_what_removal_costs_the_refitted_output() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 8).double(), torch.randn(200, 8).double()
    gram = (x.T @ x).float()
    costs = utility(weight, gram, ridge=1e-9)
    diagonal = ridge_diagonal(gram)
    total = float(((weight @ gram.double()) * weight).sum())
    for neuron in range(8):
        kept = [i for i in range(8) if i != neuron]
        refitted = solve_least_squares(weight, gram, kept, 1e-9, diagonal=diagonal)
        error = output_error(weight, gram, kept, refitted) * total
        assert costs[neuron].item() == pytest.approx(error, rel=1e-3)


def test_fair_pruning_beats_random_pruning_on_held_out_templates(
    biased, tokenizer, templated_pairs, calibration
) -> None:
    options = PruneOptions(pruning_percentage=20, compensation="least_squares", layer_indices=[LAYER])
    result = fair_plan(biased, tokenizer, templated_pairs, options, calibration, weight=10.0, draws=3)
    report = result.report
    plan = result.calibrated.plan
    assert not set(NEURONS) & set(plan.kept_neurons[LAYER])
    assert len(plan.kept_neurons[LAYER]) == 48 - 9
    assert report["outcome"] == "better"
    assert report["random_draws_beaten"] == 3
    assert report["difference"]["fair"] < report["difference"]["dense"]
    assert report["bias_change"] < 0
    assert plan.method["fairness"] == {"weight": 10.0, "prompt_pairs": 8, "held_out_pairs": 4}
    json.dumps(report, allow_nan=False)
    assert apply_plan(biased, plan).model.layers[LAYER].mlp.up_proj.out_features == 39


def test_random_plans_have_the_same_widths(biased, tokenizer, templated_pairs, calibration) -> None:
    options = PruneOptions(pruning_percentage=20, compensation="least_squares")
    fair = fair_plan(biased, tokenizer, templated_pairs, options, calibration, draws=1).calibrated
    one, two = _random_plans(locate(biased), fair.plan, fair.statistics, 2, seed=0).values()
    for plan in (one, two):
        assert {i: len(k) for i, k in plan.kept_neurons.items()} == dict.fromkeys(range(4), 39)
        assert plan.weights.keys() == fair.plan.weights.keys()
    assert one.kept_neurons != two.kept_neurons


def test_wrong_use_is_refused(biased, tokenizer, templated_pairs, calibration) -> None:
    depth = PruneOptions(pruning_type="DEPTH", num_layers_to_remove=1)
    with pytest.raises(InvalidOptionError, match="DEPTH has none"):
        fair_plan(biased, tokenizer, templated_pairs, depth, calibration)
    width = PruneOptions(pruning_percentage=20)
    with pytest.raises(InvalidOptionError, match="at least 0 and finite"):
        fair_plan(biased, tokenizer, templated_pairs, width, calibration, weight=-1)
    with pytest.raises(InvalidOptionError, match="random draw"):
        fair_plan(biased, tokenizer, templated_pairs, width, calibration, draws=0)


def test_a_prune_job_reports_what_fairness_did(
    biased, tokenizer, templated_pairs, calibration, tmp_path
) -> None:
    from optipfair_engine.workflow import prune_checkpoint

    source = tmp_path / "model"
    biased.save_pretrained(source)
    tokenizer.save_pretrained(source)
    fairness = {"prompt_pairs": templated_pairs, "weight": 10.0}
    options = PruneOptions(pruning_percentage=20, compensation="least_squares", fairness=fairness)
    metrics = prune_checkpoint(source, tmp_path / "out", options, calibration_texts=calibration)
    assert metrics["fairness_outcome"] in ("better", "worse", "inconclusive")
    assert metrics["fairness"]["held_out_pairs"] == 4
    assert metrics["bias_change_low"] <= metrics["bias_change"] <= metrics["bias_change_high"]
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["method"]["fairness"]["weight"] == 10.0
    with pytest.raises(InvalidOptionError, match="fairness needs calibration"):
        prune_checkpoint(source, tmp_path / "no", options)
    wrong = PruneOptions(pruning_percentage=20, fairness={"prompt_pairs": templated_pairs, "strength": 1})
    with pytest.raises(InvalidOptionError, match="not strength"):
        prune_checkpoint(source, tmp_path / "no", wrong, calibration_texts=calibration)


def test_one_held_out_template_gives_no_limits_to_judge_by(
    biased, tokenizer, templated_pairs, calibration
) -> None:
    options = PruneOptions(pruning_percentage=20, layer_indices=[LAYER])
    report = fair_plan(biased, tokenizer, templated_pairs[:2], options, calibration, draws=1).report
    metrics = flat_metrics(report)
    assert metrics["fairness_outcome"] == "inconclusive"
    for name in ("bias_change", "bias_against_random"):
        assert metrics[name] is not None
        assert metrics[f"{name}_low"] is metrics[f"{name}_high"] is None
    assert any("One held-out template" in text for text in report["warnings"])
