"""Applying a plan removes what it says, and nothing else changes: not the model, not the rest of the copy."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from optipfair_engine.architectures import locate
from optipfair_engine.errors import PlanError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans import HeadPlan, PruningPlan, apply_plan
from optipfair_engine.plans.apply import narrowed_in_passing
from optipfair_engine.pruning import make_plan as make_engine_plan, prune_model
from tests.numbers import assert_near


def make_plan(**parts: object) -> PruningPlan:
    return PruningPlan(model_type="llama", num_layers=6, hidden_size=32, **parts)  # type: ignore[arg-type]


FULL = {
    "kept_neurons": {0: tuple(range(0, 100, 3)), 3: tuple(range(50))},
    "kept_heads": {2: HeadPlan((0, 1, 4, 5), (0, 2)), 3: HeadPlan((2, 3), (1,))},
    "removed_layers": (4,),
}


def ids() -> torch.Tensor:
    return torch.arange(40).reshape(2, 20)


def test_pruned_forward_equals_the_original_with_the_same_parts_silenced(llama) -> None:
    plan = make_plan(kept_neurons={0: tuple(range(0, 100, 3)), 3: tuple(range(50))})
    pruned = apply_plan(llama, plan)
    with torch.no_grad():
        for layer, kept in plan.kept_neurons.items():
            gone = [i for i in range(100) if i not in kept]
            llama.model.layers[layer].mlp.down_proj.weight[:, gone] = 0
        assert_near(pruned(ids()).logits, llama(ids()).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_layers_narrowed_in_passing_give_the_pruned_models_logits_and_stay_whole(
    request, family: str
) -> None:
    model = request.getfixturevalue(family)
    view = locate(model)
    options = {"pruning_type": "MLP"} if family == "gpt2" else {}
    plan = make_engine_plan(view, PruneOptions(pruning_percentage=40, **options))
    refitted = {
        view.mlp(0).names["down"]: apply_plan(model, plan).state_dict()[view.mlp(0).names["down"]] * 2
    }
    plan = replace(plan, weights=refitted)
    expected = apply_plan(model, plan)(ids()).logits
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    shown = repr(model)
    with narrowed_in_passing(view, plan):
        assert_near(model(ids()).logits, expected)
        assert repr(model) == shown
    assert (model(ids()).logits - expected).abs().max() > 1e-3 * expected.abs().max()
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_layer_that_fails_in_passing_is_whole_again(llama) -> None:
    plan = make_plan(kept_neurons={0: tuple(range(50))})
    with narrowed_in_passing(locate(llama), plan), pytest.raises(RuntimeError):
        llama(inputs_embeds=torch.zeros(1, 4, 7))
    assert llama.model.layers[0].mlp.up_proj.weight.shape == (100, 32)


def test_removed_heads_equal_silenced_heads(llama) -> None:
    plan = make_plan(kept_heads={i: HeadPlan((0, 2, 4, 6), (0, 1, 2, 3)) for i in range(6)})
    pruned = apply_plan(llama, plan)
    assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == (4, 4)
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.self_attn.o_proj.weight.reshape(32, 8, 4)[:, 1::2] = 0
        assert_near(pruned(ids()).logits, llama(ids()).logits)


def test_nothing_of_the_model_changes_and_nothing_is_shared(llama) -> None:
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    config = llama.config.to_dict()
    pruned = apply_plan(llama, make_plan(**FULL))
    assert config == llama.config.to_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.state_dict().items())
    storages = {tensor.untyped_storage().data_ptr() for tensor in llama.state_dict().values()}
    shared = [n for n, t in pruned.state_dict().items() if t.untyped_storage().data_ptr() in storages]
    assert shared == []


def test_training_the_result_leaves_the_model_alone(llama) -> None:
    pruned = apply_plan(llama, make_plan(**FULL)).train()
    expected = llama(ids()).logits
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1.0)
    pruned(ids(), labels=ids()).loss.backward()
    optimizer.step()
    assert torch.equal(llama(ids()).logits, expected)
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_inplace_changes_the_model_itself(llama) -> None:
    assert apply_plan(llama, make_plan(**FULL), inplace=True) is llama
    assert len(llama.model.layers) == 5
    assert llama.model.layers[0].mlp.up_proj.weight.shape == (34, 32)


def test_modes_and_requires_grad_are_kept(llama) -> None:
    llama.train()
    llama.model.layers[1].eval()
    llama.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    pruned = apply_plan(llama, make_plan(**FULL))
    assert pruned.training and not pruned.model.layers[1].training
    assert not pruned.model.layers[0].mlp.up_proj.weight.requires_grad
    assert pruned.model.layers[0].mlp.gate_proj.weight.requires_grad


def test_the_global_random_state_is_untouched(llama, batches) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    prune_model(llama, dataloader=batches, show_progress=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_plan_that_does_not_fit_changes_nothing(llama) -> None:
    names = {"model.layers.9.mlp.down_proj.weight": torch.zeros(1)}
    wrong_shape = {"model.layers.3.mlp.down_proj.weight": torch.zeros(32, 4)}
    for plan in (
        make_plan(kept_neurons={0: (1, 200)}),
        make_plan(weights=names),
        make_plan(kept_neurons={0: (1, 2), 3: (1, 2, 3)}, weights=wrong_shape),
        make_plan(kept_neurons={0: (1, 2)}, weights=wrong_shape),
    ):
        with pytest.raises(PlanError):
            apply_plan(llama, plan, inplace=True)
    assert len(llama.model.layers) == 6
    assert llama.model.layers[0].mlp.up_proj.out_features == 100


def test_refitted_weights_replace_the_kept_columns(llama) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    weight = torch.randn(32, 3, dtype=torch.float64)
    llama.to(torch.bfloat16)
    plan = make_plan(kept_neurons={0: (1, 2, 3)}, weights={name: weight})
    pruned = apply_plan(llama, plan)
    assert torch.equal(pruned.state_dict()[name], weight.to(torch.bfloat16))
    with pytest.raises(PlanError, match="has shape"):
        apply_plan(llama, make_plan(weights={name: weight}))


def test_depth_equals_an_identity_bypass(llama) -> None:
    pruned = apply_plan(llama, make_plan(removed_layers=(0, 4)))
    for layer in (0, 4):
        llama.model.layers[layer].register_forward_hook(lambda _m, args, _out: args[0])
    assert_near(pruned(ids()).logits, llama(ids()).logits)
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1, 2, 3]
    assert pruned.config.num_hidden_layers == 4


def test_cached_generation_equals_uncached_after_depth(llama) -> None:
    pruned = apply_plan(llama, make_plan(**FULL))
    outputs = [
        pruned.generate(ids(), max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*outputs)


def test_progress_is_told_for_every_layer(llama) -> None:
    told: list[tuple[str, int, int]] = []
    apply_plan(
        llama, make_plan(**FULL), report=lambda stage, done, total, _: told.append((stage, done, total))
    )
    assert told == [("prune", number, 6) for number in range(1, 7)]


def test_unequal_sizes_are_in_the_config(llama) -> None:
    pruned = apply_plan(llama, make_plan(kept_neurons={0: (1, 2), 3: (4,)}))
    layers = pruned.config.to_dict()["per_layer_config"]
    assert {int(i): layer["intermediate_size"] for i, layer in layers.items()} == {0: 2, 3: 1}
    assert locate(pruned).mlp(0).intermediate_size == 2
