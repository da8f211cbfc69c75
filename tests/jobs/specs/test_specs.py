"""Specs: what is accepted, what is refused, and where the refusal points."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.specs import KINDS, SPECS, model_references, parse_request, parse_spec, spec_to_json
from tests.jobs.specs.bodies import (
    CALIBRATION,
    FAIRNESS,
    HEALING,
    HUB,
    JOB,
    LOCAL,
    PAIR,
    PLAN,
    REFITTED,
    depth,
    prune,
    unsized,
)


def locations(body: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        parse_request(body)
    return [".".join(str(part) for part in error["loc"]) for error in caught.value.errors()]


ACCEPTED: dict[str, dict[str, Any]] = {
    "analyze": {"kind": "analyze", "spec": {"model": LOCAL}},
    "importance": {"kind": "importance", "spec": {"model": HUB, "calibration": CALIBRATION}},
    "importance of a stack": {
        "kind": "importance",
        "spec": {"model": HUB, "calibration": CALIBRATION, "layers_path": "encoder.block"},
    },
    "percentage": prune(),
    "zero": prune(pruning_percentage=0),
    "fraction": prune(pruning_percentage=12.5),
    "rate": unsized(expansion_rate=140),
    "parameters": unsized(target_parameters=10**8),
    "bytes": unsized(target_bytes=10**8),
    "layers": prune(layer_indices=[0, 5]),
    "depth by count": unsized(pruning_type="DEPTH", num_layers_to_remove=2),
    "depth by share": unsized(pruning_type="DEPTH", depth_pruning_percentage=10),
    "depth by layers": unsized(pruning_type="DEPTH", layer_indices=[3], layer_selection_method="custom"),
    "attention": prune(pruning_type="ATTENTION", attention_unit="query_head"),
    "obs": prune(neuron_selection_method="OBS", compensation="least_squares", calibration=CALIBRATION),
    "obs by the preset": prune(
        preset="recommended", neuron_selection_method="OBS", calibration=CALIBRATION, keep_statistics=True
    ),
    "data-driven": prune(calibration=CALIBRATION),
    "allocated widths": prune(allocation="allocated", calibration=CALIBRATION, keep_statistics=True),
    "healing": prune(healing=HEALING, calibration=CALIBRATION),
    "healed layers": unsized(
        pruning_type="DEPTH", num_layers_to_remove=1, healing=HEALING, calibration=CALIBRATION
    ),
    "depth by importance": unsized(
        pruning_type="DEPTH",
        num_layers_to_remove=1,
        layer_selection_method="importance",
        calibration=CALIBRATION,
    ),
    "experts": prune(pruning_type="EXPERTS", calibration=CALIBRATION, expert_selection_method="FREQUENCY"),
    "experts to a size": unsized(pruning_type="EXPERTS", target_bytes=10**8, calibration=CALIBRATION),
    "experts by the preset": prune(pruning_type="EXPERTS", preset="recommended", calibration=CALIBRATION),
    "plan of experts": unsized(plan=PLAN, pruning_type="EXPERTS", pruning_percentage=50),
    "attention to a size": unsized(pruning_type="ATTENTION", target_parameters=10**8),
    "refitted heads": prune(
        pruning_type="ATTENTION", compensation="least_squares", calibration=CALIBRATION, keep_statistics=True
    ),
    "published ties": prune(tie_break="topk"),
    "recommended": prune(preset="recommended"),
    "obs of the preset alone": prune(preset="recommended", neuron_selection_method="OBS"),
    "importance of the preset alone": unsized(
        pruning_type="DEPTH", preset="fast", num_layers_to_remove=1, layer_selection_method="importance"
    ),
    "own text": prune(calibration={"source": "model", "num_samples": 8}, compensation="least_squares"),
    "mixed text": prune(calibration={**CALIBRATION, "mix_self": 0.25}),
    "healed on own text": prune(calibration={"source": "model"}, healing=HEALING),
    "plan": unsized(plan=PLAN),
    "plan of layers": unsized(plan=PLAN, pruning_type="DEPTH"),
    "plan at another size": prune(plan=PLAN, expansion_divisor=32, allocation="allocated"),
    "plan in other widths": unsized(plan=PLAN, allocation="uniform", expansion_divisor=32),
    "plan and healing": unsized(plan=PLAN, healing=HEALING, calibration=CALIBRATION),
    "of a job": {"kind": "prune", "spec": {"model": JOB, "pruning_percentage": 1}},
    "named calibration": prune(calibration={"source": "local", "name": "wiki.txt", "max_length": 64}),
    "hub calibration": prune(calibration={"source": "hub", "dataset": "org/data"}),
    "fairness": prune(fairness=FAIRNESS, calibration=CALIBRATION, keep_statistics=True),
    "bias default": {"kind": "bias", "spec": {"model": LOCAL}},
    "bias pairs": {"kind": "bias", "spec": {"model": LOCAL, "prompt_pairs": [PAIR], "layers": [0, 2]}},
    "bias named pairs": {
        "kind": "bias",
        "spec": {
            "model": LOCAL,
            "prompt_pairs": [
                PAIR,
                {"prompt1": "a male nurse", "prompt2": "an old nurse", "template": "nurse"},
            ],
        },
    },
    "bias metrics only": {"kind": "bias", "spec": {"model": LOCAL, "visualization_types": []}},
    "bias template": {
        "kind": "bias",
        "spec": {"model": LOCAL, "template": "The {attribute} nurse", "attributes": ["old", "young"]},
    },
    "bias suite": {"kind": "bias", "spec": {"model": LOCAL, "suite": "crows.csv", "baseline": JOB}},
    "evaluate": {"kind": "evaluate", "spec": {"model": LOCAL, "text": {"texts": ["x"]}, "timing": True}},
    "pipeline": {
        "kind": "pipeline",
        "spec": {
            "steps": [
                {"name": "p", "kind": "prune", "spec": {"model": LOCAL, "pruning_percentage": 10}},
                {
                    "name": "b",
                    "kind": "bias",
                    "spec": {"model": {"source": "step", "name": "p"}, "baseline": LOCAL},
                },
            ]
        },
        "gates": [{"metric": "p.reduction", "min": 2}, {"metric": "mean_difference", "max": 0}],
    },
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_the_same_after_storage(name: str) -> None:
    request = parse_request(ACCEPTED[name])
    assert parse_spec(request.kind, spec_to_json(request.spec)) == request.spec


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": (prune(pruning_percent=3), "spec.pruning_percent"),
    "unknown kind": ({"kind": "shrink", "spec": {}}, ""),
    "unknown field outside": ({**prune(), "prio": 1}, "prio"),
    "both sizes": (prune(expansion_rate=100), "spec"),
    "no size": (unsized(), "spec"),
    "100 percent": (prune(pruning_percentage=100), "spec.pruning_percentage"),
    "negative": (prune(pruning_percentage=-1), "spec.pruning_percentage"),
    "numeric string": (prune(pruning_percentage="20"), "spec.pruning_percentage"),
    "bool": (prune(pruning_percentage=True), "spec.pruning_percentage"),
    "nan": (prune(pruning_percentage=float("nan")), "spec.pruning_percentage"),
    "fraction of a seed": (prune(seed=1.5), "spec.seed"),
    "bool as layer": (prune(layer_indices=[True]), "spec.layer_indices.0"),
    "negative layer": (prune(layer_indices=[-1]), "spec.layer_indices.0"),
    "a layer twice": (prune(layer_indices=[0, 1, 0]), "spec.layer_indices"),
    "equal prompts": (
        {"kind": "bias", "spec": {"model": LOCAL, "prompt_pairs": [PAIR, ["a", "a "]]}},
        "spec.prompt_pairs",
    ),
    "a blank prompt": (
        {"kind": "bias", "spec": {"model": LOCAL, "control_pairs": [["a", " "]]}},
        "spec.control_pairs",
    ),
    "equal prompts of a named pair": (
        {
            "kind": "bias",
            "spec": {"model": LOCAL, "prompt_pairs": [{"prompt1": "a", "prompt2": "a", "template": "t"}]},
        },
        "spec.prompt_pairs",
    ),
    "equal attributes": (
        {
            "kind": "bias",
            "spec": {"model": LOCAL, "template": "{attribute}", "attributes": ["x", "y", "x"]},
        },
        "spec.attributes",
    ),
    "no layers": (prune(layer_indices=[]), "spec.layer_indices"),
    "divisor": (prune(expansion_divisor=100), "spec.expansion_divisor"),
    "method": (prune(neuron_selection_method="XYZ"), "spec.neuron_selection_method"),
    "depth with a percentage": (prune(pruning_type="DEPTH"), "spec"),
    "depth without a size": (unsized(pruning_type="DEPTH"), "spec"),
    "width with a layer count": (prune(num_layers_to_remove=2), "spec"),
    "depth by neurons": (
        unsized(pruning_type="DEPTH", num_layers_to_remove=1, neuron_selection_method="L2"),
        "spec",
    ),
    "width by greedy": (prune(layer_selection_method="first"), "spec"),
    "heads of an MLP": (prune(attention_unit="query_head"), "spec"),
    "ties of a refit": (prune(preset="recommended", tie_break="topk"), "spec"),
    "ties of heads": (unsized(pruning_type="ATTENTION", pruning_percentage=50, tie_break="topk"), "spec"),
    "attention by rate": (unsized(pruning_type="ATTENTION", expansion_rate=100), "spec"),
    "experts without calibration": (prune(pruning_type="EXPERTS"), "spec"),
    "experts of some layers": (
        prune(pruning_type="EXPERTS", layer_indices=[0], calibration=CALIBRATION),
        "spec",
    ),
    "refitted experts": (prune(pruning_type="EXPERTS", **REFITTED), "spec"),
    "experts by rate": (unsized(pruning_type="EXPERTS", expansion_rate=50, calibration=CALIBRATION), "spec"),
    "experts of neurons": (prune(expert_selection_method="FREQUENCY", calibration=CALIBRATION), "spec"),
    "statistics of experts": (
        prune(pruning_type="EXPERTS", keep_statistics=True, calibration=CALIBRATION),
        "spec",
    ),
    "obs alone": (prune(neuron_selection_method="OBS", calibration=CALIBRATION), "spec"),
    "refit without calibration": (prune(compensation="least_squares"), "spec"),
    "own text and another": (prune(calibration={"source": "model", **CALIBRATION}), "calibration"),
    "own text mixed with itself": (prune(calibration={"source": "model", "mix_self": 0.5}), "calibration"),
    "nothing but a share": (prune(calibration={"mix_self": 0.5}), "calibration"),
    "a whole share": (prune(calibration={**CALIBRATION, "mix_self": 1.0}), "mix_self"),
    "importance of own text": (
        {"kind": "importance", "spec": {"model": LOCAL, "calibration": {"source": "model"}}},
        "source",
    ),
    "greedy without calibration": (
        depth(num_layers_to_remove=1, layer_selection_method="greedy_perplexity"),
        "spec",
    ),
    "allocated without calibration": (prune(allocation="allocated"), "spec"),
    "allocated heads": (
        prune(pruning_type="ATTENTION", allocation="allocated", **REFITTED),
        "spec",
    ),
    "allocated layers": (depth(num_layers_to_remove=1, allocation="allocated", **REFITTED), "spec"),
    "healing without calibration": (prune(healing=HEALING), "spec"),
    "healing a plan without calibration": (unsized(plan=PLAN, healing=HEALING), "spec"),
    "fairness without calibration": (prune(fairness=FAIRNESS), "spec"),
    "fair layers": (depth(num_layers_to_remove=1, fairness=FAIRNESS, **REFITTED), "spec"),
    "fair heads": (prune(pruning_type="ATTENTION", fairness=FAIRNESS, **REFITTED), "spec"),
    "fairness beside a plan": (unsized(plan=PLAN, fairness=FAIRNESS, calibration=CALIBRATION), "spec"),
    "a method of fairness": (
        prune(neuron_selection_method="CFSP", fairness=FAIRNESS, calibration=CALIBRATION),
        "spec",
    ),
    "ties of fairness": (prune(tie_break="topk", fairness=FAIRNESS, calibration=CALIBRATION), "spec"),
    "statistics of nothing": (prune(keep_statistics=True, calibration=CALIBRATION), "spec"),
    "statistics of layers": (depth(num_layers_to_remove=1, keep_statistics=True, **REFITTED), "spec"),
    "named layers and the first": (depth(layer_indices=[1], layer_selection_method="first"), "spec"),
    "custom share": (depth(depth_pruning_percentage=10, layer_selection_method="custom"), "spec"),
    "no share of the layers": (depth(depth_pruning_percentage=0), "spec.depth_pruning_percentage"),
    "calibrated weights": (prune(neuron_selection_method="VOW", calibration=CALIBRATION), "spec"),
    "calibrated last layers": (depth(num_layers_to_remove=1, calibration=CALIBRATION), "spec"),
    "parameters beyond counting": (unsized(target_parameters=10**400), "spec.target_parameters"),
    "bytes beyond counting": (unsized(target_bytes=2**63), "spec.target_bytes"),
    "traversal": (prune(model={"source": "local", "name": "../etc"}), "model.local.name"),
    "absolute": (prune(model={"source": "local", "name": "/etc"}), "model.local.name"),
    "backslash": (prune(model={"source": "local", "name": "a\\b"}), "model.local.name"),
    "newline": (prune(model={"source": "local", "name": "tiny\n"}), "model.local.name"),
    "floating revision": (prune(model={**HUB, "revision": "main"}), "model.hub.revision"),
    "url as hub id": (prune(model={**HUB, "id": "https://x/y"}), "model.hub.id"),
    "dots in hub id": (prune(model={**HUB, "id": "org/.."}), "model.hub.id"),
    "not a job": (prune(model={"source": "job", "job_id": "1"}), "model.job.job_id"),
    "step outside a pipeline": (prune(model={"source": "step", "name": "p"}), "spec.model"),
    "two calibrations": (prune(calibration={**CALIBRATION, "source": "local", "name": "x"}), "calibration"),
    "empty text": (prune(calibration={"texts": [""]}), "calibration.texts.0"),
    "three prompts in a pair": (
        {"kind": "bias", "spec": {"model": LOCAL, "prompt_pairs": [[*PAIR, "x"]]}},
        "0",
    ),
    "template without a place": (
        {"kind": "bias", "spec": {"model": LOCAL, "template": "x", "attributes": ["a", "b"]}},
        "template",
    ),
    "template alone": ({"kind": "bias", "spec": {"model": LOCAL, "template": "{attribute}"}}, "spec"),
    "nothing to evaluate": ({"kind": "evaluate", "spec": {"model": LOCAL}}, "spec"),
    "label key": ({**prune(), "labels": {"a b": "x"}}, "labels"),
    "label value": ({**prune(), "labels": {"a": "x" * 129}}, "labels"),
    "label number": ({**prune(), "labels": {"a": 1}}, "labels"),
    "too many labels": ({**prune(), "labels": {f"k{n}": "" for n in range(65)}}, "labels"),
    "priority": ({**prune(), "priority": 101}, "priority"),
    "timeout": ({**prune(), "timeout_seconds": 0}, "timeout_seconds"),
    "gate metric": ({**prune(), "gates": [{"metric": "beauty", "min": 1}]}, "gates.0.metric"),
    "half a named pair": (
        {"kind": "bias", "spec": {"model": LOCAL, "prompt_pairs": [{"prompt1": "a", "prompt2": "b"}]}},
        "prompt_pairs",
    ),
    "margin without a baseline": ({"kind": "bias", "spec": {"model": LOCAL, "margin": 0.1}}, "spec"),
    "gate without a bound": ({**prune(), "gates": [{"metric": "seconds"}]}, "gates.0"),
    "gate upside down": ({**prune(), "gates": [{"metric": "seconds", "min": 2, "max": 1}]}, "gates.0"),
    "another kind's gate": ({**prune(), "gates": [{"metric": "stereoset_icat", "min": 1}]}, "gates.0.metric"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_the_right_place(name: str) -> None:
    body, place = REFUSED[name]
    found = locations(body)
    assert any(place in location for location in found), found


@pytest.mark.parametrize(
    "settled",
    [
        {"preset": "recommended"},
        {"neuron_selection_method": "L2"},
        {"tie_break": "topk"},
        {"compensation": "least_squares"},
        {"layer_indices": [0]},
        {"keep_statistics": True},
        {"pruning_type": "ATTENTION", "attention_unit": "query_head"},
        {"pruning_type": "EXPERTS", "expert_selection_method": "FREQUENCY"},
        {"pruning_type": "DEPTH", "num_layers_to_remove": 1},
        {"pruning_type": "DEPTH", "depth_pruning_percentage": 10},
        {"pruning_type": "DEPTH", "layer_indices": [0]},
        {"pruning_type": "DEPTH", "layer_selection_method": "first"},
        {"calibration": CALIBRATION},
    ],
    ids=str,
)
def test_beside_a_plan_nothing_is_accepted_that_it_would_override(settled: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_request(unsized(plan=PLAN, **settled))
    error = caught.value.errors()[0]
    assert "spec" in error["loc"]
    assert list(settled)[-1] in error["msg"]


def steps(*items: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    listed = [{"name": name, "kind": kind, "spec": spec} for name, kind, spec in items]
    return {"kind": "pipeline", "spec": {"steps": listed}}


def test_a_misspelt_gate_metric_is_told_what_it_may_have_meant() -> None:
    with pytest.raises(ValidationError, match="it does report perplexity_ratio"):
        parse_request({**prune(), "gates": [{"metric": "perplexty_ratio", "max": 2}]})


def test_steps_refer_only_to_earlier_prune_steps() -> None:
    after = {"model": {"source": "step", "name": "a"}}
    pruned = {"model": LOCAL, "pruning_percentage": 10}
    parse_request(steps(("a", "prune", pruned), ("b", "analyze", after)))
    assert locations(steps(("b", "analyze", after), ("a", "prune", pruned)))
    assert locations(steps(("a", "analyze", {"model": LOCAL}), ("b", "analyze", after)))
    assert locations(steps(("a", "prune", pruned), ("a", "prune", pruned)))
    assert locations(steps())


def test_layers_are_taken_from_an_earlier_importance_step_of_the_same_model() -> None:
    measured = {"model": LOCAL, "calibration": {"texts": ["some text"]}}
    pruned = {
        "model": LOCAL,
        "pruning_type": "DEPTH",
        "num_layers_to_remove": 1,
        "layers_from": {"source": "step", "name": "i"},
    }
    parse_request(steps(("i", "importance", measured), ("p", "prune", pruned)))
    assert locations(steps(("p", "prune", pruned), ("i", "importance", measured)))
    assert locations(steps(("i", "analyze", {"model": LOCAL}), ("p", "prune", pruned)))
    other = {**measured, "model": {**LOCAL, "name": "another"}}
    assert locations(steps(("i", "importance", other), ("p", "prune", pruned)))
    assert locations({"kind": "prune", "spec": pruned}) == ["spec.layers_from"]
    for change in (
        {"preset": "recommended"},
        {"layer_selection_method": "first"},
        {"num_layers_to_remove": None, "layer_indices": [1]},
        {"num_layers_to_remove": None, "pruning_type": "MLP_GLU", "pruning_percentage": 10},
    ):
        assert locations(steps(("i", "importance", measured), ("p", "prune", {**pruned, **change})))


def test_references_come_with_their_places() -> None:
    request = parse_request(ACCEPTED["pipeline"])
    assert [where for where, _ in model_references(request.spec)] == [
        ("steps", 0, "spec", "model"),
        ("steps", 1, "spec", "model"),
        ("steps", 1, "spec", "baseline"),
    ]


def test_every_kind_has_a_request_and_a_spec() -> None:
    assert {body["kind"] for body in ACCEPTED.values()} == set(KINDS) == set(SPECS)
