"""Dynamic pruning: the prompt chooses, what follows uses the choice alone, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optipfair_engine import dynamic_pruning
from optipfair_engine.architectures import locate
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.evaluation.continuation import continuation_perplexity
from tests.tiny import tiny_model

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
FAMILIES = ("llama", "gpt2", "phi3")  # gated, transposed, fused


def model_of(family: str) -> Any:
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.5} if family == "opt" else {}
    return tiny_model(family, max_position_embeddings=64, initializer_range=0.5, **ends, **sizes)


def prompt(samples: int = 1, tokens: int = 20, seed: int = 1) -> Tensor:
    return torch.randint(2, 64, (samples, tokens), generator=torch.Generator().manual_seed(seed))


def chosen(model: Any, ids: Tensor, count: int, used: Tensor | None = None) -> list[Tensor]:
    """The neurons that the paper's formula keeps, computed apart, token by token."""
    view = locate(model)
    seen: list[Tensor] = []
    hooks = [
        view.mlp(index).down_module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        for index in range(view.num_layers)
    ]
    with torch.no_grad():
        model(ids, attention_mask=used)
    for hook in hooks:
        hook.remove()
    kept = []
    for z in (flat.reshape(*ids.shape, -1) for flat in seen):  # OPT's are flat
        scores = torch.zeros(z.shape[-1])
        for row in range(len(ids)):
            tokens = [z[row, t] for t in range(ids.shape[1]) if used is None or used[row, t]]
            squares = torch.stack([(token / token.norm()) ** 2 for token in tokens]).sum(0)
            scores += squares.sqrt() / len(tokens) ** 0.5
        kept.append(scores.topk(count).indices)
    return kept


def by_masks(model: Any, ids: Tensor, kept: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Greedy continuation where, behind the prompt, all neurons but those kept give zero."""
    view, state = locate(model), {"prompt": True}

    def silence(index: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Tensor]) -> Any:
            if state["prompt"]:
                return None
            only = torch.zeros(args[0].shape[-1])
            only[kept[index]] = 1
            return (args[0] * only,)

        return hook

    hooks = [view.mlp(i).down_module.register_forward_pre_hook(silence(i)) for i in range(view.num_layers)]
    told = model.register_forward_hook(lambda *_: state.update(prompt=False))
    output: Tensor = model.generate(ids, attention_mask=mask, **GREEDY)
    for hook in (*hooks, told):
        hook.remove()
    return output


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_what_follows_a_prompt_is_computed_with_the_neurons_that_it_chose(family: str) -> None:
    model = model_of(family)
    ids = prompt()
    mask = torch.ones_like(ids)
    expected = by_masks(model, ids, chosen(model, ids, 12 if family != "gpt2" else 32), mask)
    dense = model.generate(ids, attention_mask=mask, **GREEDY)
    with dynamic_pruning(model, 25) as state:
        found = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(found, expected) and not torch.equal(found, dense)
    assert (state.prompts, state.selections, state.selection) == (1, 1, "prompt")


def test_prompts_given_together_share_one_choice_of_their_unmasked_tokens() -> None:
    model, ids = model_of("llama"), prompt(3)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    expected = by_masks(model, ids, chosen(model, ids, 12, mask), mask)
    with dynamic_pruning(model, 25) as state:
        found = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(found, expected)
    assert (state.prompts, state.selections, state.selection) == (3, 1, "batch")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_it_was_also_behind_an_error(family: str) -> None:
    model = model_of(family)
    before = [(name, tensor, tensor.clone()) for name, tensor in model.named_parameters()]
    sizes = [vars(module).copy() for module in model.modules()]
    with pytest.raises(KeyError), dynamic_pruning(model, 50):
        model.generate(prompt(), **GREEDY)
        assert any(new is not old for (_, old, _), new in zip(before, model.parameters(), strict=True))
        raise KeyError
    for (name, old, values), (now, tensor) in zip(before, model.named_parameters(), strict=True):
        assert name == now and tensor is old and torch.equal(tensor, values)
    for module, attributes in zip(model.modules(), sizes, strict=True):
        assert vars(module) == attributes and not module._forward_pre_hooks


def test_each_prompt_chooses_anew_and_order_does_not_matter() -> None:
    model = model_of("llama")
    with dynamic_pruning(model, 25):
        alone = [model.generate(prompt(seed=seed), **GREEDY) for seed in (1, 2)]
        again = [model.generate(prompt(seed=seed), **GREEDY) for seed in (2, 1)]
    assert torch.equal(alone[0], again[1]) and torch.equal(alone[1], again[0])


def test_a_short_prompt_is_continued_with_all_neurons_and_that_is_said() -> None:
    model, ids = model_of("llama"), prompt(tokens=15)
    dense = model.generate(ids, **GREEDY)
    with dynamic_pruning(model, 25) as state, pytest.warns(UserWarning, match="fewer than 16 tokens"):
        assert torch.equal(model.generate(ids, **GREEDY), dense)
    assert (state.prompts, state.selections, state.short_prompts) == (0, 0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_active_parameters_are_those_of_the_model_behind_a_prompt(family: str) -> None:
    model = model_of(family)
    whole = sum(p.numel() for p in model.parameters())
    with dynamic_pruning(model, 30) as state:
        model.generate(prompt(), **GREEDY)
        assert sum(p.numel() for p in model.parameters()) == state.active_parameters < whole


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_a_continuation_at_once_is_generating_it(family: str) -> None:
    model, window = model_of(family), prompt(tokens=40)[0]
    with dynamic_pruning(model, 25) as state:
        at_once = continuation_perplexity(model, [window.tolist()], following=state.continuation)
        with torch.no_grad():
            output = model(window[None, :20], use_cache=True)
            losses = []
            for token in window[20:]:
                losses.append(nn.functional.cross_entropy(output.logits[0, -1], token))
                step = {"past_key_values": output.past_key_values, "use_cache": True}
                output = model(token[None, None], **step)
    assert at_once == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    assert at_once != pytest.approx(continuation_perplexity(model, [window.tolist()]), rel=1e-3)


def test_several_tokens_behind_a_prompt_are_else_read_with_all_neurons() -> None:
    """A second turn of a chat is no continuation."""
    model, ids = model_of("llama"), prompt(tokens=40)
    with torch.no_grad():
        expected = model(ids).logits[:, 20:]
        with dynamic_pruning(model, 25):
            first = model(ids[:, :20], use_cache=True)
            found = model(ids[:, 20:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrong", [0, 100, -1, float("nan"), "50"])
def test_a_percentage_out_of_range_is_refused(wrong: Any) -> None:
    with (
        pytest.raises(InvalidOptionError, match="keep_percentage"),
        dynamic_pruning(model_of("llama"), wrong),
    ):
        pass


def test_one_neuron_stays_at_least() -> None:
    model = model_of("llama")
    with dynamic_pruning(model, 0.1):
        model.generate(prompt(), **GREEDY)
        assert {layer.mlp.down_proj.in_features for layer in model.model.layers} == {1}


def test_a_block_within_a_block_and_a_call_without_cache_are_refused() -> None:
    model = model_of("llama")
    with dynamic_pruning(model):
        with pytest.raises(InvalidOptionError, match="already"), dynamic_pruning(model):
            pass
        with pytest.raises(InvalidOptionError, match="use_cache"):
            model.generate(prompt(), use_cache=False, **GREEDY)
    with dynamic_pruning(model) as state:
        model.generate(prompt(), **GREEDY)
    assert state.prompts == 1


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mixtral", "mixtral: neurons of layer 0 can't be removed"),
        ("bert", "bert: .* nothing follows a prompt"),
    ],
)
def test_models_without_neurons_to_leave_out_or_a_next_token_are_refused(family: str, reason: str) -> None:
    if family == "bert":
        from transformers import BertConfig, BertForMaskedLM

        model: Any = BertForMaskedLM(
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        )
    else:
        model = tiny_model(family, num_local_experts=4, num_experts_per_tok=1)
    with pytest.raises(UnsupportedModelError, match=reason), dynamic_pruning(model):
        pass
