"""What a prune spec lets through, the engine can plan: no combination is queued only to fail."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from jobs.specs import parse_request, spec_to_json
from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import CalibrationSet
from optipfair_engine.pruning.planner import make_calibrated_plan
from tests.tiny import tiny_llama
from worker.engine.runners import prune_options

SIZES: list[dict[str, Any]] = [
    {"pruning_percentage": 30},
    {"pruning_percentage": 30, "expansion_divisor": 32},
    {"pruning_percentage": 30, "layer_indices": [1]},
    {"target_parameters": 11_500},
    {"num_layers_to_remove": 1},
    {"depth_pruning_percentage": 40},
    {"layer_indices": [1]},
]
#: So many of each pruning type, drawn with a seed: there are hundreds, and planning them all takes minutes.
PLANNED = 10
PRUNING_TYPES = ["MLP_GLU", "DEPTH", "ATTENTION"]
CHOICES: dict[str, list[Any]] = {
    "neuron_selection_method": ["MAW", "VOW", "CFSP", "OBS"],
    "compensation": ["none", "least_squares"],
    "allocation": [None, "allocated"],
    "calibration": [None, {"texts": ["a text"]}],
    "preset": ["guide", "recommended", "fast"],
    "keep_statistics": [False, True],
    "layer_selection_method": ["last", "custom", "importance", "greedy_perplexity"],
}


def accepted(pruning_type: str) -> list[dict[str, Any]]:
    """Combinations of the choices that are specs of this pruning type."""
    chance, found = random.Random(pruning_type), list[dict[str, Any]]()
    while len(found) < PLANNED:
        spec = {name: chance.choice(values) for name, values in CHOICES.items()} | chance.choice(SIZES)
        spec |= {"model": {"source": "local", "name": "m"}, "pruning_type": pruning_type}
        try:
            parsed = parse_request({"kind": "prune", "spec": spec}).spec
        except ValidationError:
            continue
        # a preset without text lets the model write it, and is planned as with text that is given
        if spec["calibration"] is not None or spec["preset"] == "guide":
            found.append(spec_to_json(parsed))
    return found


@pytest.fixture
def view() -> ModelView:
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3}
    return locate(tiny_llama(**sizes, initializer_range=0.3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nothing is pruned")
@pytest.mark.parametrize("pruning_type", PRUNING_TYPES)
def test_accepted_combinations_can_be_planned(view: ModelView, pruning_type: str) -> None:
    ids = torch.randint(0, 16, (8, 8), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    for spec in accepted(pruning_type):
        calibration = None if spec["calibration"] is None else CalibrationSet(batches, 64, "test", 8, 8, 8)
        options = prune_options(spec).changed(device="cpu")
        made = make_calibrated_plan(view, options, calibration)
        assert made.statistics is not None or not options.keep_statistics, spec
