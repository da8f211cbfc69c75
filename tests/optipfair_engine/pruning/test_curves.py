"""Plans at another size without a forward pass, their curves as a table, a picture and a command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from optipfair_engine.architectures import ModelView
from optipfair_engine.calibration import CalibrationSet
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, PlanError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.options.words import Allocation, NeuronSelectionMethod
from optipfair_engine.plans.provenance import FairnessFacts
from optipfair_engine.pruning.curves import error_table, replan
from optipfair_engine.pruning.plan_options import asks_for_another_size, check_beside_plan
from optipfair_engine.pruning.planner import make_calibrated_plan

OBS = PruneOptions(neuron_selection_method="OBS", compensation="least_squares", pruning_percentage=30)
SIZE_50 = PruneOptions(pruning_percentage=50)


def test_with_statistics_another_ratio_is_the_plan_made_at_that_ratio(
    view: ModelView, model: LlamaForCausalLM, calibration: CalibrationSet
) -> None:
    made = make_calibrated_plan(view, OBS, calibration)
    expected = make_calibrated_plan(view, OBS.changed(pruning_percentage=50), calibration).plan
    model.forward = None  # type: ignore[assignment]
    model.model.forward = None  # type: ignore[assignment]
    found = replan(view, SIZE_50, made.plan, made.statistics)
    assert found.to_json() == expected.to_json()


def test_another_size_of_a_fair_plan_still_says_that_fairness_chose(
    view: ModelView, calibration: CalibrationSet
) -> None:
    made = make_calibrated_plan(view, OBS, calibration)
    facts = FairnessFacts(weight=1.0, prompt_pairs=8, held_out_pairs=4, score="a formula")
    provenance = replace(made.plan.provenance, neuron_selection_method=None, fairness=facts)
    again = replan(view, SIZE_50, replace(made.plan, provenance=provenance), made.statistics).provenance
    assert again.fairness == facts
    assert again.neuron_selection_method is None


def test_a_refit_without_statistics_says_what_it_needs(view: ModelView, calibration: CalibrationSet) -> None:
    made = make_calibrated_plan(view, OBS, calibration)
    with pytest.raises(PlanError, match="keep_statistics"):
        replan(view, SIZE_50, made.plan, None)


def test_without_a_refit_the_order_of_removal_is_enough(view: ModelView, calibration: CalibrationSet) -> None:
    options = PruneOptions(allocation="allocated", pruning_percentage=30)
    plan = make_calibrated_plan(view, options, calibration).plan
    found = replan(view, SIZE_50.changed(allocation="uniform"), plan, None)
    expected = make_calibrated_plan(view, SIZE_50, calibration).plan
    assert found.kept_neurons == expected.kept_neurons
    allocated = replan(view, SIZE_50.changed(allocation="allocated"), plan, None)
    assert sum(map(len, allocated.kept_neurons.values())) == 4 * 20


@pytest.mark.parametrize("rule", ["uniform", "importance", "curves"])
def test_another_ratio_keeps_the_way_in_which_the_plan_divided_its_neurons(
    view: ModelView, calibration: CalibrationSet, rule: str
) -> None:
    options = PruneOptions(allocation="allocated", pruning_percentage=30)
    made = make_calibrated_plan(view, options, calibration).plan
    plan = replace(made, provenance=replace(made.provenance, allocation=rule))
    allocation: Allocation = "uniform" if rule == "uniform" else "allocated"
    expected = replan(view, SIZE_50.changed(allocation=allocation), plan, None)
    assert replan(view, SIZE_50, plan, None).kept_neurons == expected.kept_neurons


def test_only_another_size_makes_a_plan_anew(view: ModelView, calibration: CalibrationSet) -> None:
    plan = make_calibrated_plan(view, OBS, calibration).plan
    assert not asks_for_another_size(PruneOptions(pruning_percentage=30), plan)
    assert not asks_for_another_size(PruneOptions(), plan)
    assert asks_for_another_size(SIZE_50, plan)


@pytest.mark.parametrize("method", ["MAW", "CFSP"])
@pytest.mark.parametrize("pruning_percentage", [50, 20])
def test_a_data_driven_plan_at_another_ratio_is_the_plan_made_at_that_ratio(
    view: ModelView, calibration: CalibrationSet, method: NeuronSelectionMethod, pruning_percentage: int
) -> None:
    options = PruneOptions(neuron_selection_method=method, pruning_percentage=30)
    plan = make_calibrated_plan(view, options, calibration).plan
    other = options.changed(pruning_percentage=pruning_percentage)
    found = replan(view, PruneOptions(pruning_percentage=pruning_percentage), plan, None)
    assert found.to_json() == make_calibrated_plan(view, other, calibration).plan.to_json()


def test_another_divisor_or_allocation_makes_a_plan_anew_at_its_own_size(
    view: ModelView, calibration: CalibrationSet
) -> None:
    made = make_calibrated_plan(view, OBS, calibration)
    rounded, unequal = PruneOptions(expansion_divisor=32), PruneOptions(allocation="allocated")
    assert asks_for_another_size(rounded, made.plan)
    assert asks_for_another_size(unequal, made.plan)
    found = replan(view, rounded, made.plan, made.statistics)
    assert {len(kept) for kept in found.kept_neurons.values()} == {32}
    assert found.provenance.pruning_percentage == 30
    unequal_plan = replan(view, unequal, made.plan, made.statistics)
    assert unequal_plan.provenance.allocation == "importance"
    assert sum(map(len, unequal_plan.kept_neurons.values())) == 4 * 28


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pruning_type": "MLP"}, "pruning_type MLP contradicts the plan, which was made with MLP_GLU"),
        ({"neuron_selection_method": "VOW"}, "neuron_selection_method VOW contradicts .* made with OBS"),
        ({"layer_indices": [0, 1]}, r"layer_indices \[0, 1\] contradicts .* made with \[0, 1, 2, 3\]"),
        ({"pruning_type": "DEPTH", "num_layers_to_remove": 2}, "pruning_type DEPTH contradicts"),
        ({"preset": "recommended"}, 'preset "recommended" can\'t be used with an earlier MLP_GLU plan'),
        ({"keep_statistics": True}, "keep_statistics can't be used"),
    ],
)
def test_what_a_plan_has_settled_is_refused_beside_it(
    view: ModelView, calibration: CalibrationSet, asked: dict[str, Any], message: str
) -> None:
    plan = make_calibrated_plan(view, OBS, calibration).plan
    with pytest.raises(InvalidOptionError, match=message):
        check_beside_plan(PruneOptions(**asked), plan)


def test_what_agrees_with_a_plan_may_stand_beside_it(view: ModelView, calibration: CalibrationSet) -> None:
    check_beside_plan(
        OBS.changed(layer_indices=[0, 1, 2, 3]), make_calibrated_plan(view, OBS, calibration).plan
    )
    options = PruneOptions(pruning_type="DEPTH", num_layers_to_remove=2, layer_selection_method="first")
    plan = make_calibrated_plan(view, options).plan
    for same in (
        options,
        PruneOptions(),
        PruneOptions(pruning_type="DEPTH", layer_indices=[0, 1]),
        PruneOptions(pruning_type="DEPTH", depth_pruning_percentage=50),
    ):
        check_beside_plan(same, plan)
        assert not asks_for_another_size(same, plan)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pruning_type": "DEPTH", "num_layers_to_remove": 1}, "the plan removes 2 layers, not 1"),
        ({"pruning_type": "DEPTH", "layer_indices": [2, 3]}, r"layer_indices \[2, 3\] contradicts"),
        ({"pruning_percentage": 30}, "pruning_percentage can't be used with an earlier DEPTH plan"),
    ],
)
def test_another_depth_than_a_plans_is_refused(view: ModelView, asked: dict[str, Any], message: str) -> None:
    made = PruneOptions(pruning_type="DEPTH", num_layers_to_remove=2, layer_selection_method="first")
    with pytest.raises(InvalidOptionError, match=message):
        check_beside_plan(PruneOptions(**asked), make_calibrated_plan(view, made).plan)


def test_command_shows_table_json_and_picture(
    view: ModelView, calibration: CalibrationSet, tmp_path: Path
) -> None:
    plan = make_calibrated_plan(view, OBS, calibration).plan
    plan.save(tmp_path)
    picture = tmp_path / "curves.png"
    shown = CliRunner().invoke(app, ["plan", str(tmp_path), "--output-path", str(picture)])
    assert shown.exit_code == 0
    assert "layer" in shown.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = CliRunner().invoke(
        app, ["plan", str(tmp_path / "plan.json"), "--json", "--percentages", "30,50"]
    )
    found = json.loads(printed.stdout)
    assert found["relative_errors"]["2"] == list(error_table(plan, (30, 50))[2])
    assert found["relative_errors"]["2"][0] < found["relative_errors"]["2"][1]


def test_command_refuses_a_plan_without_curves(view: ModelView, tmp_path: Path) -> None:
    make_calibrated_plan(view, PruneOptions(pruning_percentage=30)).plan.save(tmp_path)
    refused = CliRunner().invoke(app, ["plan", str(tmp_path)])
    assert refused.exit_code == 1
    assert "no error curves" in refused.stderr
    depth = PruneOptions(pruning_type="DEPTH", num_layers_to_remove=1)
    with pytest.raises(PlanError, match="they are of neurons, and this is a DEPTH plan"):
        error_table(make_calibrated_plan(view, depth).plan)
