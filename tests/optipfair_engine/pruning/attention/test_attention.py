"""Attention pruning keeps groups that grouped-query attention can represent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optipfair_engine.architectures import locate
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.pruning import prune_model
from optipfair_engine.pruning.attention.by_norm import head_plan, weight_energy
from tests.numbers import assert_near


def test_kv_groups_go_as_a_whole_by_their_sum() -> None:
    scores = torch.tensor([9.0, 0.0, 3.0, 3.0, 8.0, 2.0])
    assert head_plan(scores, 3, "kv_group", 2) == head_plan(scores, 3, "kv_group", 2)
    assert head_plan(scores, 3, "kv_group", 2).kv == (0, 2)
    assert head_plan(scores, 3, "kv_group", 2).query == (0, 1, 4, 5)


def test_query_heads_go_evenly_from_each_group() -> None:
    plan = head_plan(torch.tensor([9.0, 0.0, 3.0, 3.0, 2.0, 8.0]), 3, "query_head", 1)
    assert plan.kv == (0, 1, 2)
    assert plan.query == (0, 2, 5)  # the tie in group 1 goes to the lower head


def test_weight_energies_add_up_to_the_norm_of_all_weights(llama) -> None:
    attention = llama.model.layers[1].self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    total = sum(module.weight.square().sum() for module in projections)
    energy = weight_energy(llama, locate(llama).attention(1))
    assert energy.shape == (8,)
    assert_near(energy.sum(), total)


@pytest.mark.parametrize(("unit", "heads", "groups"), [("kv_group", 4, 2), ("query_head", 4, 4)])
def test_half_of_the_units_go(llama, unit: str, heads: int, groups: int) -> None:
    pruned, stats = prune_model(
        llama, "ATTENTION", pruning_percentage=50, attention_unit=unit, return_stats=True, show_progress=False
    )
    assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == (heads, groups)
    assert stats["pruned_layers"] == 6
    assert pruned(torch.arange(10)[None]).logits.shape == (1, 10, 128)


def test_too_few_units_for_the_percentage_are_told(llama) -> None:
    with pytest.warns(UserWarning, match="nothing is pruned"):
        prune_model(llama, "ATTENTION", pruning_percentage=10, show_progress=False)


def test_families_that_cannot_lose_heads_are_refused_by_name(gpt2) -> None:
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        prune_model(gpt2, "ATTENTION", pruning_percentage=50, show_progress=False)


def _size(model: torch.nn.Module, unit: str) -> int:
    weigh = {"target_parameters": 1, "target_bytes": 4}[unit]
    return weigh * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("compensation", ["none", "least_squares"])
@pytest.mark.parametrize("size", ["target_parameters", "target_bytes"])
@pytest.mark.parametrize("unit", ["kv_group", "query_head"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_target_size_takes_the_fewest_units(
    request: pytest.FixtureRequest, batches: Any, family: str, unit: str, size: str, compensation: str
) -> None:
    model = request.getfixturevalue(family)
    dataloader = batches if compensation != "none" else None
    asked = {"attention_unit": unit, "compensation": compensation, "show_progress": False}

    def pruned_to(target: int) -> tuple[torch.nn.Module, int]:
        found = prune_model(model, "ATTENTION", dataloader=dataloader, **asked, **{size: target})
        return found, _size(found, size)

    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    whole = groups if unit == "kv_group" else heads // groups
    # Llama takes only numbers of heads that divide the hidden size
    accepted = [n for n in range(1, whole) if family == "phi3" or 32 % (heads - n * heads // whole) == 0]
    removed_at, sizes = accepted[0], {}
    for removed in accepted:
        target = _size(model, size) - 1 if removed == accepted[0] else sizes[removed_at] - 1
        found, sizes[removed] = pruned_to(target)
        assert found.config.num_attention_heads == heads - removed * heads // whole
        assert pruned_to(sizes[removed])[1] == sizes[removed]
        removed_at = removed
    least = min(sizes.values())
    with pytest.raises(InvalidOptionError, match=f"at least {least} {size.removeprefix('target_')} stay"):
        pruned_to(least - 1)


def test_a_target_of_the_models_own_size_is_refused(llama) -> None:
    with pytest.raises(InvalidOptionError, match="not below the model's"):
        prune_model(llama, "ATTENTION", target_parameters=_size(llama, "target_parameters"))


@pytest.mark.parametrize(
    "asked", [{"pruning_type": "DEPTH", "num_layers_to_remove": 1}, {"pruning_type": "ATTENTION"}]
)
def test_allocated_widths_are_of_neurons(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match='allocation "allocated" can\'t be used with pruning_type'):
        PruneOptions(**asked, allocation="allocated")
    PruneOptions(**asked, allocation="uniform")
