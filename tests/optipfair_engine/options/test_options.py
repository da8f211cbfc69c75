"""Options are declared once: what a field says is what the command, a job and its schema say."""

from __future__ import annotations

import inspect
import subprocess
import sys
from decimal import Decimal
from typing import Any, get_args

import numpy as np
import pytest
import typer

from jobs.specs import PruneSpec
from optipfair_engine.cli.app import app
from optipfair_engine.cli.generated import options_from
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.base import About, Strict, about
from optipfair_engine.options.bias import Bias
from optipfair_engine.options.prune import Prune, PruneOptions
from optipfair_engine.options.words import PruningType
from optipfair_engine.pruning import prune_model

NOT_OF_THEIR_OWN = {
    "depth_pruning_percentage": "pruning_percentage",
    "fairness": "fairness_pairs",
    "generation": "generation_max_new_tokens",
    "healing": "healing_max_seconds",
    "reconstruction": "reconstruction_max_seconds",
    "search": "search_max_seconds",
}
"""Fields that the command line reaches by another option."""


@pytest.mark.parametrize(("command", "model"), [("prune", Prune), ("bias", Bias)])
def test_every_field_is_an_option_of_the_command(command: str, model: type[Strict]) -> None:
    found = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    by_name = {option.name: option for option in found}
    for name, field in model.model_fields.items():
        option = by_name[NOT_OF_THEIR_OWN.get(name, name)]
        flag = about(field).flag
        assert flag is None or flag in option.opts


def test_every_field_is_one_of_a_job_and_of_its_schema() -> None:
    schema = PruneSpec.model_json_schema()["properties"]
    for name, field in Prune.model_fields.items():
        assert name in PruneSpec.model_fields
        assert schema[name]["description"] == field.description


def test_a_field_that_is_added_reaches_the_command_with_all_that_it_says() -> None:
    class More(Prune):
        speed: int = 3
        """How fast."""

    @options_from(More, without=tuple(Prune.model_fields))
    def command(**chosen: Any) -> None:
        seen.update(chosen)

    seen: dict[str, Any] = {}
    option = inspect.signature(command).parameters["speed"]
    assert (option.default, option.annotation.__metadata__[0].help) == (3, "How fast.")
    command(speed=5, fairness_prompt_pairs=None, fairness_weight=1.0, healing_max_seconds=None)
    assert seen["speed"] == 5


def test_every_field_of_a_plan_is_an_option_of_the_call_and_no_other_is() -> None:
    own = set(inspect.signature(prune_model).parameters)
    for name, field in Prune.model_fields.items():
        if name in own:
            continue
        with pytest.raises(Exception) as caught:  # None is no model, which is found out later
            prune_model(None, **{name: field.default})  # type: ignore[type-var]
        assert ("unexpected keyword" in str(caught.value)) != about(field).in_memory, name


def test_every_pruning_type_that_a_field_names_exists() -> None:
    types = set(get_args(PruningType))
    said = [about(field) for field in Prune.model_fields.values()]
    assert all(set(told.types or types) <= types for told in said)
    assert any(told != About() for told in said)


def test_options_load_nothing_heavy() -> None:
    code = (
        "import sys; from optipfair_engine.options import bias, prune, rules, presets;"
        "prune.PruneOptions(pruning_percentage=20); bias.BiasOptions();"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_percentage": 100}, "pruning_percentage must be at least 0 and below 100, got 100"),
        ({"pruning_percentage": "20"}, "pruning_percentage must be a number, got '20'"),
        ({"pruning_percentage": True}, "pruning_percentage must be a number, got True"),
        ({"expansion_rate": 0}, "expansion_rate must be above 0, got 0"),
        ({"target_parameters": -1}, "target_parameters must be above 0, got -1"),
        ({"num_layers_to_remove": 1.5}, "num_layers_to_remove must be a positive integer"),
        (
            {"expansion_divisor": 48},
            "expansion_divisor must be one of [32, 64, 128, 256] or None. Got: 48",
        ),
        ({"verify": "all"}, "verify must be one of none, structure, logits; got 'all'"),
        (
            {"pruning_percentage": 10, "expansion_rate": 90},
            "pruning_percentage and expansion_rate are mutually exclusive. Provide only one.",
        ),
        (
            {"attention_unit": "query_head", "num_layers_to_remove": 1},
            "num_layers_to_remove, attention_unit can't be used with pruning_type MLP_GLU",
        ),
        ({"fairness": {"prompt_pairs": []}}, "fairness needs prompt_pairs"),
        ({"fairness": {}}, "fairness needs prompt_pairs"),
        ({"fairness": {"prompt_pairs": [1], "strength": 1}}, "fairness has no strength"),
        (
            {"fairness": {"prompt_pairs": [1], "weight": -1.0}},
            "The fairness weight must be at least 0 and finite, got -1.0",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_the_engines_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        PruneOptions(**options)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("options", [{"layer_indices": 3}, {"speed": 3}], ids=str)
def test_what_is_no_list_or_no_option_is_a_type_error(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        PruneOptions(**options)


@pytest.mark.parametrize("number", [np.float32(20), np.int64(20), Decimal(20), 20], ids=repr)
def test_any_number_is_a_number(number: Any) -> None:
    assert PruneOptions(pruning_percentage=number).pruning_percentage == 20
    assert PruneOptions(target_parameters=number).target_parameters == 20


def test_a_change_is_checked_anew() -> None:
    options = PruneOptions(pruning_percentage=20, layer_indices=(n for n in (1, 2)))
    assert options.changed(seed=3).layer_indices == (1, 2)
    with pytest.raises(InvalidOptionError, match="mutually exclusive"):
        options.changed(expansion_rate=90)
