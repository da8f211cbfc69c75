from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from optipfair_engine.architectures import locate
from optipfair_engine.bias.activations.stream import encode_pairs
from optipfair_engine.bias.cause import patching
from optipfair_engine.bias.cause.estimate import estimate_effects
from optipfair_engine.bias.cause.exchange import Exchange, PairBatch
from optipfair_engine.bias.cause.patching import BY_ESTIMATE, continuation_distances, patch_pairs
from optipfair_engine.bias.cause.places import changed, groups_of
from optipfair_engine.errors import InvalidOptionError, NonFiniteResultError, UnsupportedModelError
from optipfair_engine.progress import null_reporter
from tests.optipfair_engine.bias.conftest import SUBJECTS
from tests.tiny import tiny_model

UNEVEN = [("the male teacher sat down", "the non-binary teacher sat down")]


@pytest.fixture(scope="module")
def found(edited, tokenizer):
    pairs = [(f"the male {s} walked home", f"the female {s} walked home") for s in SUBJECTS[:5]]
    return patch_pairs(edited.model, tokenizer, pairs, "neurons")


def test_patching_finds_the_neuron_that_causes_where_another_reacts_more(edited, found) -> None:
    first = found.patched[0]
    assert (first.layer, first.index) == (edited.layer, edited.causing)
    assert first.effect.low > 0
    by_reaction = next(unit for unit in found.patched if unit.reaction_rank == 1)
    assert (by_reaction.layer, by_reaction.index) == (edited.layer, edited.reacting)
    assert abs(by_reaction.effect.value) < first.effect.value / 10
    assert first.reaction < by_reaction.reaction


def test_units_that_are_not_patched_have_an_estimate(found) -> None:
    assert found.units == 4 * 48
    assert BY_ESTIMATE <= len(found.patched) < found.units
    sizes = [abs(unit.effect.value) for unit in found.patched]
    assert sizes == sorted(sizes, reverse=True)


def _by_hand(model, tokenizer, pair, module, part) -> float:
    """One pair, one sentence at a time, the other's activations put in by hand."""
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in pair]
    kept: list[torch.Tensor] = []

    def logits(which: int, other: torch.Tensor | None = None) -> torch.Tensor:
        def put(_module, args):
            kept.append(args[0].clone())
            if other is None:
                return None
            mixed = args[0].clone()
            mixed[..., part] = other[..., part]
            return (mixed,)

        handle = module.register_forward_pre_hook(put)
        with torch.no_grad():
            last = model(ids[which]).logits[0, -1]
        handle.remove()
        return last - last.mean()

    plain = [logits(0), logits(1)]
    first, second = kept[:2]
    d = plain[1] - plain[0]
    there = (logits(0, second) - plain[0]) @ d
    back = (plain[1] - logits(1, first)) @ d
    return float((there + back) / 2 / (d @ d))


@pytest.mark.parametrize(("kind", "size"), [("neurons", 1), ("heads", 8)])
def test_effects_are_those_of_an_exchange_by_hand(
    llama, tokenizer, templated_pairs, kind, size, monkeypatch
) -> None:
    monkeypatch.setattr(patching, "BY_ESTIMATE", 3)
    monkeypatch.setattr(patching, "BY_REACTION", 2)
    pairs = templated_pairs[:2]
    cause = patch_pairs(llama, tokenizer, pairs, kind, token_budget=10)
    for unit in (cause.patched[0], cause.patched[-1]):
        layer = llama.model.layers[unit.layer]
        module = layer.mlp.down_proj if kind == "neurons" else layer.self_attn.o_proj
        part = slice(unit.index * size, (unit.index + 1) * size)
        by_hand = np.mean([_by_hand(llama, tokenizer, pair, module, part) for pair in pairs])
        assert unit.effect.value == pytest.approx(by_hand, abs=1e-4)


def test_both_halves_of_each_layer_are_patched(llama, tokenizer, templated_pairs) -> None:
    cause = patch_pairs(llama, tokenizer, templated_pairs[:3], "layers")
    assert {unit.name for unit in cause.patched} == {
        f"{i} · {half}" for i in range(4) for half in ("attention", "mlp")
    }
    assert cause.units == 8


def test_the_estimate_is_the_effect_of_a_small_step(llama, tokenizer) -> None:
    view = locate(llama)
    pairs = encode_pairs(tokenizer, UNEVEN)
    groups = groups_of(view, "layers")
    estimates = estimate_effects(view, groups, pairs, null_reporter).effects[0]
    batch, step = PairBatch(view, pairs), 1e-3
    with torch.no_grad():
        clean = batch.logits()
        d = clean[1] - clean[0]
        for group, estimate in zip(groups, estimates, strict=True):
            with changed(group.site, lambda values: values + step * batch.exchange.change(values)):
                moved = (batch.logits() - clean) / step
            effect = float((moved[0] - moved[1]) @ d / (2 * d @ d))
            assert effect == pytest.approx(estimate, abs=0.02)


def test_spans_of_other_lengths_take_each_others_mean(tokenizer) -> None:
    (pair,) = encode_pairs(tokenizer, UNEVEN)
    values = torch.randn(2, 7, 3, dtype=torch.float64)
    swapped = Exchange.of([pair], 7).swapped(values, slice(1, 3))
    assert torch.equal(swapped[..., 0], values[..., 0])
    assert torch.equal(swapped[:, 0], values[:, 0])  # before the first difference
    torch.testing.assert_close(swapped[0, 1, 1:], values[1, 1:4, 1:].mean(dim=0))
    torch.testing.assert_close(swapped[1, 1:4, 1:].mean(dim=0), values[0, 1, 1:])
    assert torch.equal(swapped[0, 2:5, 1:], values[1, 4:7, 1:])
    assert torch.equal(swapped[1, 4:7, 1:], values[0, 2:5, 1:])


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_families_of_other_shapes(tokenizer, family) -> None:
    model = tiny_model(family, vocab_size=len(tokenizer), initializer_range=0.2, pad_token_id=0)
    pairs = [("the male man sat", "the female man sat")]
    for kind, units in (("heads", 16), ("layers", 2 * 4)):
        cause = patch_pairs(model, tokenizer, pairs, kind)
        assert cause.units == units
        assert any("one template" in text for text in cause.warnings)
        assert all(np.isfinite(unit.effect.value) for unit in cause.patched)


def test_pairs_with_nothing_to_exchange_are_named(llama, tokenizer, templated_pairs) -> None:
    twice = ("the man sat", "the  man sat")  # other spaces, the same tokens
    longer = ("the man sat", "the man sat down")  # nothing aligned behind the first difference
    cause = patch_pairs(llama, tokenizer, [twice, *templated_pairs[:2], longer], "layers")
    assert cause.pairs == 2
    assert any("(number 1, 4)" in text for text in cause.warnings)
    with pytest.raises(InvalidOptionError, match="nothing of the 2 pairs can be exchanged"):
        patch_pairs(llama, tokenizer, [twice, longer], "layers")


def test_models_that_continue_nothing_are_refused(tokenizer, templated_pairs) -> None:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with pytest.raises(UnsupportedModelError, match="sees the words"):
        patch_pairs(BertForMaskedLM(config), tokenizer, templated_pairs, "layers")


def test_logits_that_overflow_name_the_pair(make_llama, tokenizer, templated_pairs) -> None:
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.inf
    with pytest.raises(NonFiniteResultError, match="not finite for pair 0"):
        patch_pairs(model, tokenizer, templated_pairs, "layers")


def test_the_distance_of_continuations_is_the_total_variation(llama, tokenizer, templated_pairs) -> None:
    pair = templated_pairs[0]
    with torch.no_grad():
        p, q = (llama(**tokenizer(text, return_tensors="pt")).logits[0, -1].softmax(0) for text in pair)
    (found,) = continuation_distances(llama, tokenizer, [pair])
    assert found == pytest.approx(float((p - q).abs().sum() / 2), abs=1e-5)
