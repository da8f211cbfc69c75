from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from optipfair_engine.architectures import locate
from optipfair_engine.bias.prompts.suites import PairItem
from optipfair_engine.calibration import calibration_from_texts
from optipfair_engine.calibration.statistics import gather_statistics
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.pruning.fairness import (
    BEFORE_HEALING,
    _random_plans,
    fair_plan,
    fair_plan_of,
    fairness_scores,
    flat_metrics,
    neuron_bias,
    split_templates,
    utility,
)
from optipfair_engine.pruning.judging import verdict
from optipfair_engine.pruning.width.calibrated import SELECTION_RIDGE, SELECTION_SCALE
from optipfair_engine.solving.obs import eliminate
from optipfair_engine.solving.refit import output_error, ridge_diagonal, ridged, solve_least_squares

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
    # two spaces: another text, and the same tokens
    pairs = [(f"the {word} man sat", f"the {word}  man sat") for word in ("old", "young", "white", "black")]
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
    diagonal = ridge_diagonal(gram, SELECTION_SCALE)
    total = float(((weight @ gram.double()) * weight).sum())
    for neuron in range(8):
        kept = [i for i in range(8) if i != neuron]
        refitted = solve_least_squares(weight, gram, kept, 1e-9, diagonal=diagonal)
        error = output_error(weight, gram, kept, refitted) * total
        assert costs[neuron].item() == pytest.approx(error, rel=1e-3)


def test_the_utility_is_by_the_ridge_of_selection() -> None:
    """One neuron with far more energy than the rest: by the median's ridge it would cost more."""
    torch.manual_seed(1)
    weight, x = torch.randn(6, 8).double(), torch.randn(40, 8).double()
    x[:, 3] *= 30
    gram = (x.T @ x).float()
    first = eliminate(weight, gram, SELECTION_RIDGE, block_size=1, scale=SELECTION_SCALE).order[0]
    costs = utility(weight, gram)
    assert int(costs.argmin()) == int(first)
    inverse = ridged(gram, SELECTION_RIDGE, ridge_diagonal(gram, SELECTION_SCALE)).inverse().diagonal()
    torch.testing.assert_close(costs, weight.square().sum(dim=0) / inverse)


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
    assert plan.provenance.to_json()["fairness"] == {
        "weight": 10.0,
        "prompt_pairs": 8,
        "held_out_pairs": 4,
        "score": "rank(OBS cost) - weight * rank(bias)",
    }
    assert plan.provenance.neuron_selection_method is None  # no score of the options' chose these
    json.dumps(report, allow_nan=False)
    assert apply_plan(biased, plan).model.layers[LAYER].mlp.up_proj.out_features == 39


def test_a_single_random_draw_that_does_as_well_leaves_it_open() -> None:
    templates = [str(i) for i in range(12)]
    fair, dense = np.linspace(0.9, 1.1, 12), np.full(12, 2.0)
    values = {"dense": dense, "fair": fair, "random 1": 3 * fair, "random 2": 4 * fair}
    assert verdict(values, {}, templates)["outcome"] == "better"
    lucky = verdict({**values, "random 2": 0.9 * fair}, {}, templates)
    assert (lucky["random_draws_beaten"], lucky["outcome"]) == (1, "inconclusive")


def test_random_plans_have_the_same_widths(biased, tokenizer, templated_pairs, calibration) -> None:
    options = PruneOptions(pruning_percentage=20, compensation="least_squares")
    fair = fair_plan(biased, tokenizer, templated_pairs, options, calibration, draws=1).calibrated
    (_, one), (_, two) = _random_plans(locate(biased), fair.plan, fair.statistics, 2, seed=0)
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
    for wrong in ({"neuron_selection_method": "VOW"}, {"tie_break": "topk"}):
        with pytest.raises(InvalidOptionError, match=f"{next(iter(wrong))} .* has no effect with fairness"):
            fair_plan(biased, tokenizer, templated_pairs, width.changed(**wrong), calibration)
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
    with pytest.raises(InvalidOptionError, match="fairness has no strength"):
        PruneOptions(pruning_percentage=20, fairness={"prompt_pairs": templated_pairs, "strength": 1})


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


def test_templates_that_pairs_name_are_kept_together(templated_pairs) -> None:
    items = [PairItem(*pair, "one" if i < 5 else "two") for i, pair in enumerate(templated_pairs)]
    chosen, held = split_templates(items)
    assert [len(chosen), len(held)] == [5, 3]
    with pytest.raises(InvalidOptionError, match="Fairness pair 1 is not two texts"):
        split_templates([("one",)])


def test_a_preset_and_healing_are_taken_note_of(biased, tokenizer, templated_pairs, calibration) -> None:
    fairness = {"prompt_pairs": [list(pair) for pair in templated_pairs], "weight": 1.0}
    options = PruneOptions(
        pruning_percentage=20,
        preset="recommended",
        layer_indices=[LAYER],
        fairness=fairness,
        healing={"max_seconds": 1},
    )
    made = fair_plan_of(biased, tokenizer, options, calibration)
    assert made.calibrated.plan.weights  # the preset refits
    assert BEFORE_HEALING in made.report["warnings"]
    with pytest.raises(InvalidOptionError, match="OBS has no effect with fairness"):
        fair_plan_of(biased, tokenizer, options.changed(neuron_selection_method="OBS"), calibration)


def test_fairness_on_the_command_line(biased, tokenizer, templated_pairs, tmp_path) -> None:
    source, pairs, text = tmp_path / "model", tmp_path / "pairs.jsonl", tmp_path / "text.jsonl"
    biased.save_pretrained(source)
    tokenizer.save_pretrained(source)
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in templated_pairs))
    words = ["the", "old", "man", "sat", "down", "and", "she", "thought", "that", "it", "was", "late"]
    text.write_text(
        "".join(json.dumps({"text": " ".join(words[i % 12 :] + words[: i % 12])}) + "\n" for i in range(32))
    )

    def prune(*more: str):
        options = ["--model-path", str(source), "--output-path", str(tmp_path / "out"), "--device", "cpu"]
        options.append("--overwrite")
        return CliRunner().invoke(app, ["prune", *options, "--pruning-percentage", "20", "--json", *more])

    given = ["--fairness-pairs", str(pairs), "--calibration", str(text), "--verify", "none"]
    result = prune(*given, "--fairness-weight", "10", "--layer-indices", str(LAYER), "--quiet")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["fairness"]["weight"] == 10
    assert metrics["fairness"]["prompt_pairs"] == 8
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["method"]["fairness"]["weight"] == 10
    for more, message in [
        (["--fairness-weight", "2"], "--fairness-weight has no effect without --fairness-pairs"),
        (["--fairness-pairs", str(pairs)], "fairness needs calibration"),
        ([*given, "--out-of-core"], "not out of core"),
        ([*given, "--method", "VOW"], "VOW has no effect with fairness"),
    ]:
        result = prune(*more)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
