"""Perplexity is exp of the token-weighted mean loss, over windows of the stated protocol."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from optipfair_engine.errors import InvalidOptionError, TokenizerError, UnsupportedModelError
from optipfair_engine.evaluation.perplexity import perplexity, score_windows, text_windows


class CharTokenizer:
    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 48 for c in text]}


TEXT = "".join(chr(60 + (7 * i + i * i) % 48) for i in range(203))


def test_it_is_the_models_own_loss_weighted_by_token(model: LlamaForCausalLM) -> None:
    windows = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    losses = [float(model(torch.tensor([w]), labels=torch.tensor([w])).loss) for w in windows]
    expected = math.exp((losses[0] * 5 + losses[1] * 2) / 7)
    found = score_windows(model, windows)
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
    assert (found.tokens, found.windows, found.max_length) == (7, 2, 6)


def test_windows_start_where_the_protocol_says() -> None:
    ids = CharTokenizer()(TEXT)["input_ids"]
    expected = [ids[i * ((203 - 20) // 4) :][:20] for i in range(5)]
    assert text_windows(CharTokenizer(), TEXT, 20, 5) == expected


def test_without_a_number_windows_fill_the_text_without_overlap() -> None:
    assert len(text_windows(CharTokenizer(), TEXT, 20)) == 10


def test_mode_is_restored_and_progress_is_told(model: LlamaForCausalLM) -> None:
    model.train()
    said: list[tuple[str, int, int]] = []
    perplexity(model, CharTokenizer(), TEXT, 20, 3, report=lambda s, d, t, m: said.append((s, d, t)))
    assert model.training
    assert said == [("evaluate", 1, 3), ("evaluate", 2, 3), ("evaluate", 3, 3)]


def test_several_texts_share_the_windows(model: LlamaForCausalLM) -> None:
    found = perplexity(model, CharTokenizer(), [TEXT, TEXT[:50]], 20, 10)
    assert found.windows == 10


def test_a_destroyed_model_has_infinite_perplexity(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    assert score_windows(model, [[1, 2, 3, 4, 5, 6]]).perplexity == math.inf


@pytest.mark.parametrize(
    ("tokenizer", "text", "error"),
    [
        (None, TEXT, TokenizerError),
        (CharTokenizer(), "a", InvalidOptionError),
        (CharTokenizer(), "", InvalidOptionError),
    ],
)
def test_refuses_what_has_no_perplexity(
    model: LlamaForCausalLM, tokenizer: Any, text: str, error: type
) -> None:
    with pytest.raises(error):
        perplexity(model, tokenizer, text)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_only_causal_models_have_a_perplexity(family: str) -> None:
    if family == "bert":
        config = BertConfig(
            vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
        other: Any = BertForMaskedLM(config)
    else:
        other = T5ForConditionalGeneration(
            T5Config(vocab_size=48, d_model=16, d_ff=24, num_layers=1, num_heads=2, d_kv=8)
        )
    with pytest.raises(UnsupportedModelError, match=f"{family}.*no causal language model"):
        score_windows(other, [[1, 2, 3]])


def test_a_window_longer_than_the_position_table_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    assert score_windows(model, [list(range(8))]).tokens == 7
    with pytest.raises(InvalidOptionError, match="8 positions: give a smaller max_length"):
        score_windows(model, [list(range(9))])
