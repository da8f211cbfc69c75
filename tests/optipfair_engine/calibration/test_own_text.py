"""Text that a model writes for its own calibration: drawn as it says, repeatable, of the size asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from optipfair_engine.calibration import CalibrationSet, calibration_from_windows, own_text
from optipfair_engine.calibration.own_text import OPENINGS, calibration_for, mixed, write_calibration
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from tests.tiny import byte_tokenizer, tiny_llama


def written(model: Any, count: int, tokenizer: Any = None, **options: Any) -> CalibrationSet:
    return write_calibration(model, tokenizer, PruneOptions(**options), count)


def ids_of(calibration: CalibrationSet) -> torch.Tensor:
    return torch.cat([batch["input_ids"] for batch in calibration.batches])


def test_tokens_are_drawn_at_temperature_one() -> None:
    model = tiny_llama(vocab_size=12, bos_token_id=1, initializer_range=0.5)
    pairs = ids_of(written(model, 1500, max_length=2))
    assert set(pairs[:, 0].tolist()) == {1}
    with torch.no_grad():
        wanted = model(torch.tensor([[1]])).logits[0, 0].softmax(-1)
    found = torch.bincount(pairs[:, 1], minlength=12) / len(pairs)
    assert (found - wanted).abs().sum() / 2 < 0.05  # uniform chances are 0.2 or more away
    assert (1 / 12 - wanted).abs().sum() / 2 > 0.2


def test_a_cached_pass_draws_what_a_whole_pass_would() -> None:
    model = tiny_llama(initializer_range=0.3)
    ids = ids_of(written(model, 6, max_length=12))
    generator, forced = torch.Generator().manual_seed(0), torch.full((6, 12), -1)
    forced[:, 0] = ids[:, 0]
    for position in range(11):
        with torch.no_grad():
            logits = model(forced[:, : position + 1], use_cache=False).logits[:, -1]
        forced[:, position + 1] = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    assert torch.equal(ids, forced)


def test_a_seed_repeats_it_and_nothing_else_is_touched(model: LlamaForCausalLM) -> None:
    before = torch.get_rng_state()
    first, again, other = (ids_of(written(model, 5, max_length=9, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_windows_are_filled_with_pieces(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "PIECE_LENGTH", 8)
    monkeypatch.setattr(own_text, "PIECES_AT_ONCE", 5)
    said: list[tuple[int, int]] = []
    found = write_calibration(
        model,
        None,
        PruneOptions(max_length=20, batch_size=2),
        3,
        report=lambda _stage, done, total, _text: said.append((done, total)),
    )
    ids = ids_of(found)
    assert ids.shape == (3, 20)
    assert ids[:, [0, 8, 16]].unique().tolist() == [model.config.bos_token_id]
    assert (found.tokens, found.num_samples, found.own_samples) == (60, 3, 3)
    assert said == [(5, 9), (9, 9)]


def test_pieces_begin_in_several_ways_with_a_tokenizer() -> None:
    tokenizer = byte_tokenizer(OPENINGS)
    model = tiny_llama(vocab_size=len(tokenizer))
    ids = ids_of(written(model, len(OPENINGS) + 1, tokenizer, max_length=40)).tolist()
    texts = [tokenizer.decode(row[1:]) for row in ids]
    assert all(row[0] == model.config.bos_token_id for row in ids)
    assert all(text.startswith(opening) for text, opening in zip(texts[1:], OPENINGS, strict=True))


def test_a_share_is_spread_among_the_users_samples(model: LlamaForCausalLM) -> None:
    given = calibration_from_windows([[2, 3, 4]] * 24, batch_size=4, source="wiki.txt", num_texts=1)
    options = PruneOptions(mix_self=0.25, max_length=3, batch_size=4)
    found = calibration_for(model, None, options, given)
    assert found is not None
    assert (found.num_samples, found.own_samples, found.tokens) == (32, 8, 96)
    assert found.source == "wiki.txt, and text that the model wrote itself"
    own = [batch["input_ids"][:, 0].tolist() == [1] * 4 for batch in found.batches]
    assert own == [False, False, True, False, False, False, True, False]
    assert found.facts(1).own_samples == 8
    assert calibration_for(model, None, PruneOptions(), given) is given


def test_a_user_s_batch_stays_as_it_is(model: LlamaForCausalLM) -> None:
    given = calibration_from_windows([[2, 3, 4], [2, 3]], source="wiki.txt")
    assert mixed(given, written(model, 1, max_length=3)).batches[0] is given.batches[0]


def test_models_that_cannot_write_are_refused(model: LlamaForCausalLM) -> None:
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="not finite"):
        written(model, 1, max_length=4)
    silent = tiny_llama(bos_token_id=None, eos_token_id=None)
    with pytest.raises(CalibrationError, match="names no token that a text begins with"):
        written(silent, 1, max_length=4)
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with pytest.raises(UnsupportedModelError, match="bert"):
        written(BertForMaskedLM(BertConfig(vocab_size=20, **sizes)), 1, max_length=4)
