"""Presets are data: each changes what its lines say, and nothing that was chosen otherwise."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.presets import PRESETS, resolve_preset, with_own_text
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.options.words import Preset, PruningType


def test_every_preset_has_its_facts() -> None:
    assert [facts.name for facts in PRESETS] == list(get_args(Preset))


@pytest.mark.parametrize("facts", PRESETS, ids=lambda facts: facts.name)
@pytest.mark.parametrize("kind", get_args(PruningType))
def test_a_preset_sets_what_it_shows(facts: Any, kind: Any) -> None:
    options = PruneOptions(preset=facts.name, pruning_type=kind)
    resolved = resolve_preset(options, calibrated=True)
    assert resolved == options.changed(**facts.for_type(kind))
    assert resolve_preset(options, calibrated=False) == options


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"preset": "recommended", "neuron_selection_method": "CFSP"}, "neuron_selection_method"),
        ({"preset": "recommended", "allocation": "uniform"}, "allocation"),
        (
            {"preset": "fast", "pruning_type": "DEPTH", "layer_selection_method": "first"},
            "layer_selection_method",
        ),
        ({"preset": "fast", "pruning_type": "DEPTH", "layer_indices": [1]}, "layer_selection_method"),
    ],
)
def test_what_was_chosen_stays(asked: dict[str, Any], name: str) -> None:
    options = PruneOptions(**asked)
    resolved = resolve_preset(options, calibrated=True)
    assert getattr(resolved, name) == getattr(options, name)
    assert resolved.compensation == "least_squares"


def test_best_says_its_stages_before_it_starts() -> None:
    options = with_own_text(PruneOptions(preset="best", search={"max_seconds": 60}), texts=True)
    assert (options.allocation, options.healing_seconds) == ("searched", 480)
    assert options.calibration is None
    own = with_own_text(PruneOptions(preset="best", allocation="uniform", pruning_percentage=20), texts=False)
    assert (own.allocation, own.healing_seconds) == ("uniform", 480)
    assert own.calibration is not None
    fair = PruneOptions(preset="best", fairness={"prompt_pairs": [["a", "b"]]})
    assert with_own_text(fair, texts=True).allocation is None
    assert resolve_preset(fair, calibrated=True).allocation is None


def test_a_search_is_refused_where_fairness_leaves_none_to_limit() -> None:
    fair: dict[str, Any] = {"fairness": {"prompt_pairs": [["a", "b"]]}, "search": {"max_seconds": 60}}
    with pytest.raises(InvalidOptionError, match="search: not with fairness"):
        PruneOptions(preset="best", **fair)


def test_no_preset_is_described_in_the_words_of_the_command_alone() -> None:
    assert not [facts.name for facts in PRESETS if "--" in facts.summary + facts.measured]


def test_fast_scores_by_activations_and_refits() -> None:
    resolved = resolve_preset(PruneOptions(preset="fast"), calibrated=True)
    assert (resolved.neuron_selection_method, resolved.compensation) == ("MAW", "least_squares")
    assert resolved.allocation in (None, "uniform")


def test_the_command_shows_each_with_what_it_measured() -> None:
    shown = CliRunner().invoke(app, ["presets"]).stdout
    for facts in PRESETS:
        assert f"{facts.name} (version {facts.version})" in shown
        assert facts.measured in shown
    told = json.loads(CliRunner().invoke(app, ["presets", "--json"]).stdout)["presets"]
    assert [preset["name"] for preset in told] == list(get_args(Preset))
