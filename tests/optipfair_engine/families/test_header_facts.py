"""What the header door says of a folder is what transformers builds from its config, for every family."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from optipfair_engine.architectures import ARCHITECTURES, ModelView, locate
from optipfair_engine.architectures.registry import NATIVE_MODEL_TYPES
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.headers import ModelFacts, estimate_prune, inspect_model_folder
from tests.optipfair_engine.families.zoo import FAMILIES, Family, config_of


def _on_meta(family: Family) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, family.model_class)(config_of(family))
    return model


def _facts(model: PreTrainedModel, folder: Path) -> ModelFacts:
    """Of the model's config beside a checkpoint that has its parameters, and none of their values."""
    model.config.save_pretrained(folder)
    shape = [sum(parameter.numel() for parameter in model.parameters())]
    end = 4 * shape[0]
    header = json.dumps({"all": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return inspect_model_folder(folder)


def _mlp_sizes(view: ModelView) -> dict[int, int]:
    """Layer → parameters of its MLP's matrices, for the layers that have neurons to remove."""
    sizes = {}
    for layer in range(view.num_layers):
        try:
            mlp = view.mlp(layer)
        except UnsupportedModelError:
            continue
        names = {mlp.names[role] for role in ("gate", "up", "down") if role in mlp.names}
        sizes[layer] = sum(view.model.get_parameter(name).numel() for name in names)
    return sizes


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_facts_are_those_of_the_model(family: Family, tmp_path: Path) -> None:
    model = _on_meta(family)
    facts = _facts(model, tmp_path)
    architecture = ARCHITECTURES[model.config.get_text_config().model_type]
    if architecture.refused:
        assert facts.num_layers == model.config.num_hidden_layers
        return
    view = locate(model)
    told = (facts.num_layers, facts.hidden_size, facts.num_attention_heads)
    config = view.config
    assert told == (view.num_layers, view.hidden_size, config.num_attention_heads)
    layers = _mlp_sizes(view)
    assert {view.mlp(layer).intermediate_size for layer in layers} <= {facts.intermediate_size}
    if len(layers) == view.num_layers:  # all neurons gone: what the estimate says goes is what the MLPs hold
        spec = {"pruning_percentage": 100}
        gone = facts.bytes - estimate_prune(facts, spec).output_bytes
        assert gone == pytest.approx(facts.bytes * sum(layers.values()) / facts.parameters, rel=0.01)


def test_every_family_of_the_engine_is_native_and_looked_at() -> None:
    assert set(ARCHITECTURES) < NATIVE_MODEL_TYPES
    for model_type in NATIVE_MODEL_TYPES:
        tower = AutoConfig.for_model(model_type).get_text_config().model_type
        assert tower in ARCHITECTURES, f"{model_type} is said to have a text tower of a known family"
    assert {family.model_type for family in FAMILIES} >= set(ARCHITECTURES)
