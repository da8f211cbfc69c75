"""Fields of specs: those of the engine, their bounds and defaults, and those of specs stored before them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from jobs.specs import BiasSpec, PruneSpec, parse_request, parse_spec, spec_to_json
from jobs.specs.metrics import known_metrics
from optipfair_engine.options.base import about
from optipfair_engine.options.bias import Bias
from optipfair_engine.options.prune import Prune
from tests.jobs.specs.bodies import CALIBRATION, LOCAL, depth, prune, unsized


@pytest.mark.parametrize(("spec", "options"), [(PruneSpec, Prune), (BiasSpec, Bias)])
def test_a_spec_is_the_engines_options_with_references(
    spec: type[BaseModel], options: type[BaseModel]
) -> None:
    assert issubclass(spec, options)
    for name, field in options.model_fields.items():
        assert spec.model_fields[name].description == field.description, name
        assert spec.model_fields[name].get_default(call_default_factory=True) == field.get_default(
            call_default_factory=True
        ), name
        assert about(spec.model_fields[name]) == about(field), name


@pytest.mark.parametrize(
    ("spec", "field", "bounds"),
    [
        (BiasSpec, "margin", {"minimum": 0, "maximum": 10}),
        (PruneSpec, "pruning_percentage", {"minimum": 0, "exclusiveMaximum": 100}),
    ],
)
def test_bounds_of_optional_numbers_are_words_of_json_schema(
    spec: type[BaseModel], field: str, bounds: dict[str, int]
) -> None:
    number = spec.model_json_schema()["properties"][field]["anyOf"][0]
    assert {name: number[name] for name in number if name != "type"} == bounds


@pytest.mark.parametrize("level", ["none", "structure", "logits"])
def test_a_prune_job_says_how_its_result_is_verified(level: str) -> None:
    assert spec_to_json(parse_request(prune()).spec)["verify"] == "logits"
    assert spec_to_json(parse_request(prune(verify=level)).spec)["verify"] == level


def test_a_spec_stored_before_a_field_was_added_is_still_valid() -> None:
    stored = spec_to_json(parse_request(prune()).spec)
    del stored["verify"]
    assert parse_spec("prune", stored).verify == "logits"


READ_BY = {name: about(field).types for name, field in Prune.model_fields.items()}


@pytest.mark.parametrize("pruning_type", ["MLP_GLU", "DEPTH", "ATTENTION"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tie_break", "topk"),
        ("neuron_selection_method", "L2"),
        ("allocation", "allocated"),
        ("expansion_divisor", 32),
        ("layer_selection_method", "first"),
        ("attention_unit", "query_head"),
        ("keep_statistics", True),
    ],
)
def test_a_field_that_the_pruning_type_does_not_read_is_refused(
    pruning_type: str, name: str, value: Any
) -> None:
    size = {"num_layers_to_remove": 1} if pruning_type == "DEPTH" else {"pruning_percentage": 20}
    body = unsized(pruning_type=pruning_type, **size, **{name: value})
    types = READ_BY[name]
    assert types is not None
    try:
        parse_request(body)
        said = ""
    except ValidationError as error:
        said = error.errors()[0]["msg"]
    assert (f'not with pruning_type "{pruning_type}"' in said) == (pruning_type not in types)
    assert pruning_type in types or name in said


def test_a_value_that_means_the_default_is_no_choice() -> None:
    request = parse_request(depth(num_layers_to_remove=1, allocation="uniform"))
    assert request.spec.allocation == "uniform"


def test_the_windows_of_a_text_are_its_own_whatever_calibration_says() -> None:
    request = parse_request(
        prune(
            calibration={"texts": ["x"], "max_length": 32},
            evaluation={"texts": ["y"], "num_windows": 3},
        )
    )
    evaluation = spec_to_json(request.spec)["evaluation"]
    assert (evaluation["max_length"], evaluation["num_windows"]) == (512, 3)


def test_an_evaluation_stored_when_the_length_stood_beside_its_text_is_still_valid() -> None:
    request = parse_request({"kind": "evaluate", "spec": {"model": LOCAL, "text": {"texts": ["x"]}}})
    stored = spec_to_json(request.spec)
    del stored["text"]["max_length"]
    stored["max_length"] = 64
    assert parse_spec("evaluate", stored).text.max_length == 64
    pipeline = {"steps": [{"name": "e", "kind": "evaluate", "spec": stored}]}
    assert parse_spec("pipeline", pipeline).steps[0].spec.text.max_length == 64


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("prune", "loads_with_transformers"),
        ("prune", "evaluation_max_length"),
        ("prune", "final_expert_count"),
        ("bias", "preference_change"),
        ("evaluate", "evaluation_tokens"),
    ],
)
def test_a_gate_may_name_what_jobs_report_since_the_first_users(kind: str, metric: str) -> None:
    assert metric in known_metrics(kind)


def test_a_preset_without_text_says_that_the_model_writes_it() -> None:
    spec = parse_request(prune(preset="recommended")).spec
    assert spec.calibration.source == "model"
    assert spec.writes_text
    assert parse_request(prune(preset="guide")).spec.calibration is None
    best = parse_request(prune(preset="best", calibration=CALIBRATION)).spec
    assert (best.allocation, best.healing_seconds, best.writes_text) == ("searched", 480, False)
    assert not parse_request(prune(preset="recommended", calibration=CALIBRATION)).spec.writes_text


@pytest.mark.parametrize("preset", [[], {}, 1, "better"])
def test_a_preset_that_is_none_is_refused_whatever_it_is(preset: Any) -> None:
    with pytest.raises(ValidationError, match="preset"):
        parse_request(prune(preset=preset))
