"""Every family of the support table, on a tiny random model: its components are found, the claims hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optipfair_engine.architectures import ARCHITECTURES, locate
from optipfair_engine.bias.activations.batching import Prompt
from optipfair_engine.bias.activations.components import LAYER_TYPES, NEURONS, find_sites
from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.activations.stream import EncodedPair, run_pairs
from optipfair_engine.bias.analysis import NeuronRanking
from optipfair_engine.bias.prompts.alignment import align
from optipfair_engine.bias.statistics.neurons import NeuronConsumer, output_norms, rank_neurons
from optipfair_engine.bias.statistics.profile import ProfileConsumer
from optipfair_engine.errors import UnsupportedModelError
from tests.numbers import assert_near
from tests.optipfair_engine.families.zoo import FAMILIES, LAYERS, Family, build

#: What a family has no module for, and why.
ABSENT = {
    "plain": {"gate_proj"},
    "encoder": {"gate_proj", "input_norm"},
    "encoder-decoder": {"gate_proj"},
    "glu": {"input_norm"},  # the post-norm ones
}


def pair(index: int, first: list[int], second: list[int]) -> EncodedPair:
    prompts = [Prompt(str(ids), tuple(ids), tuple(map(str, ids))) for ids in (first, second)]
    return EncodedPair(index, prompts[0], prompts[1], align(first, second), f"template {index}")


PAIRS = [
    pair(0, [5, 6, 7, 8, 9], [5, 16, 7, 8, 9]),
    pair(1, [5, 6, 7, 8, 9, 10, 11], [5, 6, 17, 18, 8, 9, 10, 11]),
    pair(2, [5, 6, 7], [5, 6, 7]),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family) -> None:
    torch.manual_seed(0)
    model = build(family).eval()
    try:
        view = locate(model)
    except UnsupportedModelError as refusal:
        assert family.model_type in str(refusal)
        assert ARCHITECTURES[family.model_type].refused
        return
    sites = find_sites(view, LAYER_TYPES)
    found = {parts[0] for site in sites if (parts := split_key(site.key)) is not None}
    assert {"attention_output"} <= found
    assert set(LAYER_TYPES) - found <= ABSENT.get(family.kind, set()) | (
        {"gate_proj", "up_proj", "down_proj", "mlp_output"}
        if family.kind in ("moe", "hybrid", "other")
        else set()
    )

    def profile(budget: int) -> np.ndarray:
        consumer = ProfileConsumer([site.key for site in sites])
        run_pairs(view, PAIRS, sites, [consumer], token_budget=budget)
        return consumer.result().moments

    together, alone = profile(10**6), profile(1)
    assert np.isfinite(together).all()
    assert_near(together, alone, axis=(0, 2))  # each site by its own size
    assert together[0, :, 0, 1].max() > 0  # a changed token is seen
    assert not together[2, :, :, 1:].any()  # equal prompts differ by nothing
    assert {layer for _, layer in map(split_key, (site.key for site in sites))} == set(range(LAYERS))


@pytest.mark.parametrize("name", ["Llama", "Phi-3", "GPT-2", "OPT", "T5", "BERT"])
def test_neurons_of_different_layouts_are_ranked(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    view = locate(build(family).eval())
    sites = find_sites(view, (NEURONS,))
    consumer = NeuronConsumer(PAIRS)
    run_pairs(view, PAIRS, sites, [consumer])
    norms = output_norms(view, sites)
    result = rank_neurons(consumer.result(), norms, unit=consumer.unit)
    assert result.tested == sum(len(values) for values in norms.values())
    assert len(norms) == view.num_layers
    assert NeuronRanking(view.model) is not None


def test_the_halves_of_a_fused_projection_are_gate_and_up() -> None:
    family = next(family for family in FAMILIES if family.name == "Phi-3")
    view = locate(build(family).eval())
    sites = {site.key: site for site in find_sites(view, ("gate_proj", "up_proj"))}
    output = torch.arange(96.0).repeat(1, 2, 1)
    size = view.mlp(0).intermediate_size
    assert sites["gate_proj_layer_0"].read((), {}, output).tolist() == output[..., :size].tolist()
    assert sites["up_proj_layer_0"].read((), {}, output).tolist() == output[..., size:].tolist()
