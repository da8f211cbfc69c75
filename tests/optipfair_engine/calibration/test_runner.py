"""Hooks see unmasked tokens only, whatever the padding and batching, and leave the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack
from transformers import (
    AutoModel,
    BertConfig,
    GPT2Config,
    GPTJConfig,
    LlamaForCausalLM,
    OPTConfig,
    RobertaConfig,
)

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import (
    CosineImportance,
    Gram,
    SquaredNorm,
    calibration_from_windows,
    capture,
    capture_sites,
)
from optipfair_engine.calibration.runner import TokenSelection, check_tokens, forward_batches
from optipfair_engine.errors import InvalidOptionError, TokenizerError
from optipfair_engine.pruning import analyze_layer_importance
from tests.numbers import assert_near

WINDOWS = [
    [(7 * i + j) % 64 for j in range(length)] for i, length in enumerate([9, 4, 9, 2, 7, 5, 9, 3, 9, 6])
]


def test_padding_and_batching_change_nothing(view: ModelView) -> None:
    results = []
    for size in (1, 3, 10):
        data = calibration_from_windows(WINDOWS, batch_size=size)
        found = capture_sites(
            view,
            data.batches,
            {"down_proj": ([0, 2], SquaredNorm), "layer": ([1], CosineImportance)},
            holdout_every=4,
        )
        assert found["down_proj"].fit[0].tokens == sum(len(w) for i, w in enumerate(WINDOWS) if i % 4 != 3)
        assert found["down_proj"].held[0].tokens == sum(len(w) for i, w in enumerate(WINDOWS) if i % 4 == 3)
        results.append(found)
    for other in results[1:]:
        for layer in (0, 2):
            for part in ("fit", "held"):
                one = getattr(results[0]["down_proj"], part)[layer].result()
                assert_near(getattr(other["down_proj"], part)[layer].result(), one)
        assert other["layer"].fit[1].result() == pytest.approx(results[0]["layer"].fit[1].result(), abs=1e-6)


def test_gram_equals_the_inputs_of_a_plain_forward(view: ModelView, model: LlamaForCausalLM) -> None:
    seen: list[torch.Tensor] = []
    module = model.model.layers[1].self_attn.o_proj
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    ids = torch.tensor(WINDOWS[0])[None]
    model.eval()(ids)
    handle.remove()
    gram = capture(view, [ids], [1], Gram, "o_proj")[1]
    assert_near(gram.result(), seen[0][0].T @ seen[0][0])


def test_mode_and_hooks_are_restored_even_after_an_error(
    view: ModelView, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train()
    model.model.layers[0].mlp.eval()
    monkeypatch.setattr(model.model.layers[1].mlp, "up_proj", torch.nn.Linear(1, 1))  # fails in the forward
    with pytest.raises(RuntimeError):
        capture(view, [torch.tensor([[1, 2]])], [0, 1], Gram)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].mlp.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_progress_counts_batches(view: ModelView) -> None:
    said: list[tuple[str, int, int]] = []
    data = calibration_from_windows(WINDOWS, batch_size=4)
    capture(view, data.batches, [0], SquaredNorm, report=lambda s, d, t, m: said.append((s, d, t)))
    assert said == [("calibrate", 1, 3), ("calibrate", 2, 3), ("calibrate", 3, 3)]


ROOM = 16

BOUNDED = {
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=ROOM),
    "opt": OPTConfig(
        vocab_size=64,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=ROOM,
    ),
    "gptj": GPTJConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=ROOM, rotary_dim=4),
    "bert": BertConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=ROOM,
    ),
    "roberta": RobertaConfig(  # position numbers start behind the padding id
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=ROOM + 2,
    ),
}


@pytest.mark.parametrize("family", BOUNDED)
def test_samples_longer_than_the_position_table_are_refused_and_no_others(family: str) -> None:
    model = AutoModel.from_config(BOUNDED[family])
    fits = calibration_from_windows([[3 + i % 9 for i in range(ROOM)]], batch_size=1).batches
    analyze_layer_importance(model, fits, show_progress=False)
    long = calibration_from_windows([[3 + i % 9 for i in range(ROOM + 1)]], batch_size=1).batches
    with pytest.raises(InvalidOptionError, match=f"{ROOM + 1} tokens .* {ROOM} positions: .*max_length"):
        analyze_layer_importance(model, long, show_progress=False)


def test_rotary_positions_have_no_end(model: LlamaForCausalLM) -> None:
    length = model.config.max_position_embeddings + 1
    check_tokens(model, torch.zeros(1, length, dtype=torch.int64))


def test_tokens_of_another_vocabulary_are_refused(view: ModelView, model: LlamaForCausalLM) -> None:
    beyond = torch.tensor([[1, model.config.vocab_size]])
    with pytest.raises(TokenizerError, match="beyond the model's vocabulary"):
        capture(view, [beyond], [1], Gram, "o_proj")


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "bert", "llama"])
def test_padding_on_the_left_changes_nothing(family: str, model: LlamaForCausalLM) -> None:
    given = model if family == "llama" else AutoModel.from_config(BOUNDED[family])
    ids, padding = torch.tensor([[5, 9, 3, 7]]), torch.zeros(1, 3, dtype=torch.int64)
    padded = {
        "input_ids": torch.cat([padding, ids], 1),
        "attention_mask": torch.cat([padding, torch.ones_like(ids)], 1),
    }
    bare = analyze_layer_importance(given, [ids], show_progress=False)
    assert analyze_layer_importance(given, [padded], show_progress=False) == pytest.approx(bare, abs=1e-6)
    captured = [capture(locate(given), [batch], [0], SquaredNorm)[0].result() for batch in (ids, padded)]
    assert_near(captured[1], captured[0])


def test_who_goes_over_the_batches_computes_as_ever(model: LlamaForCausalLM) -> None:
    """Between batches the caller's code runs inside the generator: no mode of torch's may be left on."""
    outside = len(_get_current_function_mode_stack())
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    for _ in forward_batches(model, [batch, batch], TokenSelection()):
        assert len(_get_current_function_mode_stack()) == outside
