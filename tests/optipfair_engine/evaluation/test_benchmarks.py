"""Timing does the same work in every run and leaves the models as they were; no test looks at the clock."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from optipfair_engine.errors import InvalidOptionError, TokenizerError, UnsupportedModelError
from optipfair_engine.evaluation import benchmarks
from optipfair_engine.evaluation.benchmarks import compare_models_inference, generate_text, time_inference
from tests.tiny import tiny_llama


class Tokenizer:
    """Token ids are the characters' numbers."""

    pad_token_id: int | None = None
    eos_token_id = 1

    def __call__(self, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[ord(c) % 60 + 2 for c in text]], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids * 0}

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return " ".join(str(int(i)) for i in ids)


@pytest.fixture
def model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return tiny_llama(**sizes, bos_token_id=1, eos_token_id=1).train()


def always_end(model: LlamaForCausalLM) -> None:
    """Make the model prefer the end of the sequence at every step."""
    model.lm_head = torch.nn.Linear(16, 64)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    model.lm_head.bias.data[1] = 9.0


def test_the_guides_keys_and_the_spread(model: LlamaForCausalLM) -> None:
    timing = time_inference(model, Tokenizer(), "Paris", max_new_tokens=4, num_runs=3, warmup_runs=1)
    assert set(timing) == {
        *("avg_time", "min_time", "max_time", "tokens_per_second", "num_runs", "generated_tokens"),
        *("median_time", "std_time", "median_tokens_per_second"),
    }
    assert (timing["num_runs"], timing["generated_tokens"]) == (3, 4)


def test_an_early_end_of_sequence_does_not_shorten_the_work(model: LlamaForCausalLM) -> None:
    always_end(model)
    assert generate_text(model, Tokenizer(), "Paris", 8).split() == ["1"]
    assert time_inference(model, Tokenizer(), "Paris", 8, 1, 0)["generated_tokens"] == 8


def test_sampling_settings_of_the_model_are_not_used(model: LlamaForCausalLM) -> None:
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    texts = {generate_text(model, Tokenizer(), "Paris", 12) for _ in range(4)}
    assert len(texts) == 1


def test_the_attention_mask_is_passed_and_other_inputs_are_not(model: LlamaForCausalLM, monkeypatch) -> None:
    seen: list[set[str]] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: (seen.append(set(inputs)), generate(**inputs))[1])
    time_inference(model, Tokenizer(), "Paris", 2, 1, 0)
    assert {"input_ids", "attention_mask"} <= seen[0] and "token_type_ids" not in seen[0]


def test_warmups_do_not_count_and_models_take_turns(model: LlamaForCausalLM, monkeypatch) -> None:
    order: list[str] = []
    seconds = iter(range(1, 100))

    def fake(one: object, _tokenizer: object, prompt: str, tokens: int) -> tuple[float, int]:
        order.append("original" if one is model else "pruned")
        return float(next(seconds)), tokens

    monkeypatch.setattr(benchmarks, "_timed_run", fake)
    other = LlamaForCausalLM(model.config)
    result = compare_models_inference(model, other, Tokenizer(), ["a"], 10, num_runs=2, warmup_runs=1)
    assert order == ["original", "pruned"] * 3
    assert (result["avg_original_time"], result["avg_pruned_time"]) == (4.0, 5.0)  # runs 3, 5 and 4, 6
    assert result["speedup"] == 0.8
    assert result["tps_improvement_percent"] == pytest.approx(-20)
    assert result["median_speedup"] == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert result["speedup_low"] <= result["median_speedup"] <= result["speedup_high"]


def test_the_train_mode_is_restored(model: LlamaForCausalLM) -> None:
    model.train()
    time_inference(model, Tokenizer(), "Paris", 2, 1, 0)
    assert model.training


def test_nonsense_is_refused(model: LlamaForCausalLM) -> None:
    for numbers in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(InvalidOptionError):
            time_inference(model, Tokenizer(), "Paris", *numbers)
    for prompts in ([], "one string"):
        with pytest.raises(InvalidOptionError):
            compare_models_inference(model, model, Tokenizer(), prompts)
    for tokenizer, prompt in ((None, "Paris"), (Tokenizer(), "")):
        with pytest.raises(TokenizerError):
            time_inference(model, tokenizer, prompt)


def test_a_model_that_generates_nothing_is_refused() -> None:
    config = BertConfig(
        vocab_size=200, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM can't generate"):
        time_inference(BertForMaskedLM(config), Tokenizer(), "ab", 2, 1, 0)


def test_more_tokens_than_the_model_has_positions_are_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    assert time_inference(model, Tokenizer(), "ab", 7, 1, 0)["generated_tokens"] == 7
    with pytest.raises(InvalidOptionError, match="8 positions: give a smaller max_new_tokens"):
        time_inference(model, Tokenizer(), "ab", 8, 1, 0)
