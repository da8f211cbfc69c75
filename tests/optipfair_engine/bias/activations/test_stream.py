from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from optipfair_engine.architectures import locate
from optipfair_engine.bias import calculate_bias_metrics, get_activation_pairs, get_layer_names, select_layers
from optipfair_engine.bias.activations.batching import encode
from optipfair_engine.bias.activations.components import find_sites
from optipfair_engine.bias.activations.stream import encode_pairs, run_pairs
from optipfair_engine.bias.analysis import analyze_pairs
from optipfair_engine.bias.statistics.profile import PairMetrics
from optipfair_engine.computing.asked import computing
from optipfair_engine.errors import InvalidOptionError, NonFiniteResultError, TokenizerError
from tests.numbers import ROUNDING, assert_near


def overall(metrics):
    return {k: v for k, v in metrics["overall_metrics"].items() if isinstance(v, float)}


def test_the_stream_gives_what_single_pairs_give(llama, tokenizer, pairs) -> None:
    metrics = PairMetrics(analyze_pairs(llama, tokenizer, pairs))
    for number, pair in enumerate(pairs):
        single = calculate_bias_metrics(*get_activation_pairs(llama, tokenizer, *pair))
        streamed = metrics[f"pair_{number + 1}"]["metrics"]
        # a least difference may be nothing but rounding, which is that of the greatest
        rounding = ROUNDING * single["overall_metrics"]["max_difference"]
        assert overall(streamed) == pytest.approx(overall(single), rel=1e-4, abs=rounding)
        assert streamed["alignment"] == single["alignment"]
        found, expected = (
            {key: layer["from_first_difference"]["mean_difference"] for key, layer in layers.items()}
            for layers in (streamed["layer_metrics"], single["layer_metrics"])
        )
        assert_near(found, expected)


def test_batches_and_padding_do_not_matter(llama, tokenizer, pairs) -> None:
    together = analyze_pairs(llama, tokenizer, pairs, token_budget=10**6).moments
    alone = analyze_pairs(llama, tokenizer, pairs, token_budget=1).moments
    assert_near(together, alone, axis=(0, 2))


def test_one_forward_pass_serves_all_pairs_of_a_batch(llama, tokenizer, pairs) -> None:
    calls = []
    handle = llama.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        analyze_pairs(llama, tokenizer, pairs)
    finally:
        handle.remove()
    assert len(calls) == 1


def test_a_prompt_on_both_sides_is_one_row_and_differs_by_exactly_nothing(llama, tokenizer, pairs) -> None:
    same = [(first, first) for first, _ in pairs]
    assert not analyze_pairs(llama, tokenizer, same).moments[..., 1:].any()


def test_unequal_lengths_are_aligned_and_reported(llama, tokenizer, pairs) -> None:
    entry = PairMetrics(analyze_pairs(llama, tokenizer, pairs))["pair_2"]["metrics"]
    assert entry["alignment"]["pooled"] == [
        {"first": ["male"], "second": ["non", "-", "binary"], "at": [2 - 1, 2 - 1]}
    ]
    assert entry["alignment"]["share_aligned"] == 1.0
    assert any("different numbers of tokens" in text for text in entry["warnings"])


def test_pooling_compares_means_of_the_spans(llama, tokenizer) -> None:
    first, second = get_activation_pairs(llama, tokenizer, "the male man sat", "the non-binary man sat")
    metrics = calculate_bias_metrics(first, second)
    key = "gate_proj_layer_2"
    rows1 = torch.stack([first[key][0], first[key][1], *first[key][2:]])
    rows2 = torch.stack([second[key][0], second[key][1:4].mean(dim=0), *second[key][4:]])
    expected = (rows1 - rows2).abs().mean().item()
    assert metrics["layer_metrics"][key]["mean_difference"] == pytest.approx(expected, rel=1e-5)


def test_down_proj_and_mlp_output_are_found_to_be_one_tensor(llama, tokenizer, pairs) -> None:
    profile = analyze_pairs(llama, tokenizer, pairs)
    assert profile.aliases == {f"mlp_output_layer_{i}": f"down_proj_layer_{i}" for i in range(4)}
    assert PairMetrics(profile)["pair_1"]["metrics"]["overall_metrics"]["total_layers"] == 4 * 5


def test_before_the_first_difference_a_causal_model_has_no_signal(llama, tokenizer, pairs) -> None:
    profile = analyze_pairs(llama, tokenizer, pairs[:1])
    every, later = profile.moments[0, :, 0], profile.moments[0, :, 1]
    assert (every[:, 0] == 5).all()
    assert (later[:, 0] == 4).all()
    assert_near(every[:, 0] * every[:, 1], later[:, 0] * later[:, 1])


def test_the_model_is_left_as_it_was(make_llama, tokenizer, pairs) -> None:
    model = make_llama().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    analyze_pairs(model, tokenizer, pairs)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_activations_are_float32_of_any_model(make_llama, tokenizer) -> None:
    first, _ = get_activation_pairs(make_llama().bfloat16(), tokenizer, "the old man", "the young man")
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    assert first["gate_proj_layer_0"].shape == (3, 48)
    assert first.tokens == ("the", "old", "man")
    double, _ = get_activation_pairs(make_llama().double(), tokenizer, "the old man", "the young man")
    assert double["gate_proj_layer_0"].dtype == torch.float64


def test_layer_names_are_sorted_and_selected_by_position(llama, tokenizer) -> None:
    first, _ = get_activation_pairs(llama, tokenizer, "the old man", "the young man")
    names = get_layer_names(first, "gate_proj")
    assert names == [f"gate_proj_layer_{i}" for i in range(4)]
    assert select_layers(names) == ["gate_proj_layer_0", "gate_proj_layer_2", "gate_proj_layer_3"]
    assert select_layers(names, [1, 3]) == ["gate_proj_layer_1", "gate_proj_layer_3"]
    with pytest.raises(InvalidOptionError, match=r"positions \[4\]"):
        select_layers(names, [4])


def test_wrong_input_is_refused_before_the_model_runs(llama, tokenizer) -> None:
    with pytest.raises(InvalidOptionError, match="no prompt pairs"):
        analyze_pairs(llama, tokenizer, [])
    with pytest.raises(InvalidOptionError, match="pair 0 has not two"):
        analyze_pairs(llama, tokenizer, [("only one",)])
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(InvalidOptionError, match="longer than the model's 64 positions"):
        analyze_pairs(GPT2LMHeadModel(config), tokenizer, [("old " * 65, "old")])
    with pytest.raises(InvalidOptionError, match="Unknown layer types"):
        get_activation_pairs(llama, tokenizer, "a", "b", target_layers=["nothing"])


def test_a_foreign_tokenizer_is_noticed(make_llama, tokenizer) -> None:
    model = make_llama()
    model.resize_token_embeddings(10)
    with pytest.raises(TokenizerError, match="don't belong together"):
        analyze_pairs(model, tokenizer, [("the writer", "the baker")])


class Counter:
    """Counts what the stream hands over."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, units) -> None: ...

    def end(self) -> None: ...

    def take(self, key, first, second, alias) -> None:
        self.seen.append(key)


def test_every_site_is_given_once_a_batch(llama, tokenizer, pairs) -> None:
    view, counter = locate(llama), Counter()
    sites = find_sites(view, ("mlp_output", "gate_proj", "down_proj_input"))
    forwards = run_pairs(view, encode_pairs(tokenizer, pairs), sites, [counter], token_budget=1)
    assert forwards == 3
    assert sorted(counter.seen) == sorted([site.key for site in sites] * 3)


def test_pair_metrics_are_a_mapping_that_builds_what_is_looked_up(llama, tokenizer, pairs) -> None:
    metrics = PairMetrics(analyze_pairs(llama, tokenizer, pairs))
    plain = dict(metrics)
    assert list(metrics) == list(plain) == ["pair_1", "pair_2", "pair_3"]
    assert metrics == plain
    assert {**metrics} == plain
    assert plain["pair_2"]["prompt1"] == pairs[1][0]
    assert "pair_9" not in metrics
    assert metrics.get("pair_9") is None
    with pytest.raises(KeyError):
        metrics["pair_0"]


@pytest.fixture
def overflowing(make_llama):
    model = make_llama(seed=4).half()
    with torch.no_grad():
        model.model.layers[2].mlp.gate_proj.weight.fill_(6e4)
    return model


@pytest.mark.parametrize("kind", ["mean_diff", "heatmap", "pca"])
def test_overflowing_activations_are_an_error_that_names_the_layer(
    overflowing, tokenizer, pairs, tmp_path, kind
) -> None:
    with (
        computing("checkpoint"),
        pytest.raises(
            NonFiniteResultError, match=r"gate_proj_layer_2 .* pair 0 .'the white.* float16 overflows"
        ),
    ):
        analyze_pairs(
            overflowing,
            tokenizer,
            pairs,
            visualization_types=[kind],
            layers="all",
            layer_types=["gate_proj"],
            folder=tmp_path,
        )
    assert not list(tmp_path.iterdir())
    with computing("checkpoint"):
        first, second = get_activation_pairs(overflowing, tokenizer, *pairs[0])
    with pytest.raises(NonFiniteResultError, match=r"mlp_output_layer_2 are not finite .as those of 9 of 24"):
        calculate_bias_metrics(first, second)


def test_equal_lengths_give_what_plain_dictionaries_give(llama, tokenizer) -> None:
    """The changed words stand at other places, the numbers of tokens are equal."""
    first, second = get_activation_pairs(llama, tokenizer, "the old man sat down", "old the man sat early")
    with_tokens, plain = (
        calculate_bias_metrics(a, b) for a, b in ((first, second), (dict(first), dict(second)))
    )
    assert overall(with_tokens) == pytest.approx(overall(plain))


def test_spans_are_read_together() -> None:
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", "the", "play", "##ing", "sing", "##er"])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    prompt = encode(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]"), "the playing singer")
    assert prompt.words(0, 5) == "the playing singer"
    assert prompt.words(1, 3) == "playing"
    assert prompt.tokens == ("the", "play", "##ing", "sing", "##er")


def test_the_bytes_of_a_letter_are_read_together() -> None:
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    prompt = encode(PreTrainedTokenizerFast(tokenizer_object=inner), "né")
    assert len(prompt.ids) == 3 and prompt.words(1, 3) == "é"
