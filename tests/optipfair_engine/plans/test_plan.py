"""A plan is plain data: it refuses nonsense, fits or refuses a model, and saves to the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from optipfair_engine.architectures import locate
from optipfair_engine.errors import PlanError
from optipfair_engine.plans import HeadPlan, Provenance, PruningPlan


@pytest.fixture
def plan() -> PruningPlan:
    return PruningPlan(
        model_type="llama",
        num_layers=6,
        hidden_size=32,
        provenance=Provenance(pruning_type="MLP_GLU", pruning_percentage=20),
        kept_neurons={3: (0, 2, 99), 1: (5,)},
        removed_layers=(4,),
        kept_heads={0: HeadPlan((0, 1), (0,))},
        weights={"model.layers.1.mlp.down_proj.weight": torch.arange(32.0).reshape(32, 1)},
        curves={1: (0.0, 0.5)},
    )


def test_save_and_load_give_the_same_plan(plan: PruningPlan, tmp_path: Path) -> None:
    plan.save(tmp_path)
    loaded = PruningPlan.load(tmp_path)
    (name,) = plan.weights
    assert torch.equal(loaded.weights[name], plan.weights[name])
    for field in dataclasses.fields(plan):
        if field.name != "weights":
            assert getattr(loaded, field.name) == getattr(plan, field.name)


def test_equal_plans_give_equal_bytes(plan: PruningPlan, tmp_path: Path) -> None:
    reordered = dataclasses.replace(plan, kept_neurons=dict(reversed(plan.kept_neurons.items())))
    plan.save(tmp_path / "a")
    reordered.save(tmp_path / "b")
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_who_may_read_the_plan_may_read_its_weights(plan: PruningPlan, tmp_path: Path) -> None:
    plan.save(tmp_path)
    modes = {(tmp_path / name).stat().st_mode for name in ("plan.json", "plan.safetensors")}
    assert len(modes) == 1


def test_saving_a_plan_without_weights_removes_stale_ones(plan: PruningPlan, tmp_path: Path) -> None:
    plan.save(tmp_path)
    dataclasses.replace(plan, weights={}).save(tmp_path)
    assert not (tmp_path / "plan.safetensors").exists()
    assert PruningPlan.load(tmp_path / "plan.json").weights == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"kept_neurons": {0: ()}},
        {"kept_neurons": {0: (2, 1)}},
        {"kept_neurons": {0: (1, 1)}},
        {"kept_neurons": {0: (-1, 1)}},
        {"kept_neurons": {6: (1,)}},
        {"removed_layers": tuple(range(6))},
        {"removed_layers": (7,)},
        {"removed_layers": (3, 3)},
    ],
)
def test_what_no_model_could_satisfy_is_refused(plan: PruningPlan, changes: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        dataclasses.replace(plan, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},
        {"num_layers": 7},
        {"hidden_size": 64},
        {"kept_neurons": {0: (1, 100)}},
        {"kept_heads": {0: HeadPlan((0, 2), (0,))}},  # head 2 belongs to group 1
        {"kept_heads": {0: HeadPlan((0, 8), (0,))}},
    ],
)
def test_a_plan_of_another_model_is_refused(llama, plan: PruningPlan, changes: dict[str, object]) -> None:
    plan.validate(locate(llama))
    with pytest.raises(PlanError):
        dataclasses.replace(plan, **changes).validate(locate(llama))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": "other"}', '{"format": "optipfair-plan/1"}', None]
)
def test_unreadable_plans_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(PlanError):
        PruningPlan.load(tmp_path)


def test_missing_weights_are_noticed(plan: PruningPlan, tmp_path: Path) -> None:
    plan.save(tmp_path)
    (tmp_path / "plan.safetensors").write_bytes(b"broken")
    with pytest.raises(PlanError, match=r"plan\.safetensors"):
        PruningPlan.load(tmp_path)


def test_the_json_can_be_read_by_people(plan: PruningPlan) -> None:
    data = json.loads(plan.to_json())
    assert data["intermediate_sizes"] == {"1": 1, "3": 3}
    assert len(plan.to_json().splitlines()) == len(data) + 2


#: As a plan of a calibrated, fairness-aware refit was saved before its provenance had types.
METHOD = {
    "pruning_type": "MLP_GLU",
    "data_driven": True,
    "compensation": "least_squares",
    "pruning_percentage": 30,
    "allocation": "curves",
    "allocation_held_out_losses": {"uniform": 2.5, "curves": 2.25},
    "curve_ridge": 0.01,
    "curve_ridge_scale": "coordinate",
    "ridges": {"2": 0.001, "10": 0.1},
    "calibration": {
        "source": "text.txt",
        "tokens": 4096,
        "samples": 32,
        "max_length": 128,
        "tokens_per_feature": 51.2,
        "warnings": [],
    },
    "fairness": {"weight": 1.0, "prompt_pairs": 8, "held_out_pairs": 4, "score": "a formula"},
    "layer_indices": [2, 10],
    "warnings": ["a warning"],
}


@pytest.mark.parametrize("method", [METHOD, {}, {"pruning_type": "DEPTH", "a_later_field": [1]}])
def test_an_earlier_file_is_read_and_written_byte_for_byte(tmp_path: Path, method: dict[str, object]) -> None:
    PruningPlan("llama", 12, 32, kept_neurons={2: (1,)}).save(tmp_path)
    file = tmp_path / "plan.json"
    text = json.dumps(method, sort_keys=True, separators=(",", ":"))
    file.write_text(file.read_text().replace('"method": {}', f'"method": {text}'))
    assert PruningPlan.load(tmp_path).to_json() == file.read_text()


def test_what_an_earlier_file_says_is_read_into_fields() -> None:
    provenance = Provenance.from_json(METHOD)
    assert provenance.ridges == {2: 0.001, 10: 0.1}
    assert provenance.layer_indices == (2, 10)
    assert provenance.calibration is not None and provenance.calibration.tokens == 4096
    assert provenance.fairness is not None and provenance.fairness.held_out_pairs == 4
    assert provenance.neuron_selection_method is None and provenance.other == {}


@pytest.mark.parametrize("method", [{"calibration": {"tokens": 5}}, {"ridges": {"a": 1.0}}, {"fairness": 3}])
def test_a_malformed_provenance_is_named_as_such(tmp_path: Path, method: dict[str, object]) -> None:
    PruningPlan("llama", 12, 32, kept_neurons={2: (1,)}).save(tmp_path)
    file = tmp_path / "plan.json"
    file.write_text(file.read_text().replace('"method": {}', f'"method": {json.dumps(method)}'))
    with pytest.raises(PlanError, match="malformed"):
        PruningPlan.load(tmp_path)
