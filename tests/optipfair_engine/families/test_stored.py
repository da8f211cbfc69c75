"""Which tensors a config is said to mean are those of transformers' own model, for every family."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from optipfair_engine.architectures.stored import STORED, stored_tensors
from tests.optipfair_engine.families.zoo import FAMILIES, Family, config_of

TOLD = [family for family in FAMILIES if family.model_type in STORED]

#: What changes the tensors of a family, beyond its config in the zoo.
CHANGES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"attention_bias": True, "mlp_bias": True, "use_bias": True},
    {"attention_bias": False, "mlp_bias": False, "use_bias": False},
    {"num_hidden_layers": 2, "intermediate_size": 20, "layer_types": None, "no_rope_layers": None},
]


def of_transformers(family: Family, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json, name → shape) of the model on the meta device."""
    config = config_of(family)
    for name, value in changes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config = type(config)(**config.to_dict())
    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(config)
    tied = set(model.all_tied_weights_keys or ())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    stated = json.loads(model.config.to_json_string(use_diff=True)) | {"architectures": [family.model_class]}
    return stated, shapes


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("family", TOLD, ids=lambda family: family.name)
def test_names_and_shapes_are_the_models(family: Family, changes: dict[str, Any]) -> None:
    config, shapes = of_transformers(family, changes)
    assert stored_tensors(config) == shapes


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_not_told_is_none(family: Family) -> None:
    config = config_of(family).to_dict()
    if family not in TOLD:
        assert stored_tensors(config | {"architectures": [family.model_class]}) is None
    assert stored_tensors(config | {"architectures": [family.model_class.split("For")[0] + "Model"]}) is None
    assert stored_tensors(config | {"architectures": None}) is None
    uneven = {"architectures": [family.model_class], "per_layer_config": {"0": {"intermediate_size": 8}}}
    assert stored_tensors(config | uneven) is None


def test_every_family_that_is_told_is_looked_at() -> None:
    assert {family.model_type for family in TOLD} == set(STORED)
