from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from optipfair_engine.bias.behaviour.likelihood import CausalScorer, MaskedScorer, MaskedText, ScoredText
from optipfair_engine.bias.behaviour.trees import TokenTree
from optipfair_engine.errors import InvalidOptionError, TokenizerError, UnsupportedModelError
from tests.numbers import assert_near

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.5,
}
GROUPS = [
    [ScoredText((2, 5, 6, 7, 8)), ScoredText((2, 5, 9, 7, 8)), ScoredText((2, 5, 6))],
    [ScoredText((2, 10, 11, 12, 13, 14), 3), ScoredText((2, 10, 11, 15), 3)],
    [ScoredText((2, 4)), ScoredText((2, 4))],
]


def plainly(model, text: ScoredText) -> float:
    """One sentence, all logits, no tricks."""
    ids = torch.tensor([text.ids])
    with torch.no_grad():
        log_p = model(ids).logits.double().log_softmax(dim=-1)
    return sum(log_p[0, i - 1, text.ids[i]].item() for i in range(text.start, len(text.ids)))


def check(model, groups=GROUPS) -> CausalScorer:
    scorer = CausalScorer(model)
    for group, results in zip(groups, scorer.score(groups), strict=True):
        assert_near([total for total, _ in results], [plainly(model, text) for text in group])
        assert [count for _, count in results] == [len(text.ids) - text.start for text in group]
    return scorer


def test_scores_equal_plain_scoring_of_each_sentence(llama) -> None:
    scorer = check(llama)
    assert scorer._trees_work
    assert scorer._head_works


def test_a_family_that_cannot_attend_along_a_tree_is_scored_the_long_way() -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    model = BloomForCausalLM(config).eval()
    assert not check(model)._trees_work
    # within a group nothing branches, but these groups would share a tree
    ends = [[ScoredText((2, 3, start, 9, end)) for end in (20, 21)] for start in (5, 6, 7)]
    assert not check(model, ends)._trees_work


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_a_model_does_not_take_are_not_given(dtype) -> None:
    torch.manual_seed(0)
    model = MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4)).to(dtype).eval()
    scorer = CausalScorer(model)
    scorer.score(GROUPS)
    assert not scorer._trees_work


def test_a_head_that_is_more_than_a_matrix_is_noticed() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5, **SMALL)
    assert not check(Gemma2ForCausalLM(config).eval())._head_works


def test_a_window_of_attention_that_only_the_longest_sentences_exceed_is_noticed() -> None:
    torch.manual_seed(0)
    config = MistralConfig(num_key_value_heads=2, sliding_window=4, **SMALL)
    groups = [*GROUPS, [ScoredText((2, *range(5, 17))), ScoredText((2, *range(5, 12), 20, *range(13, 17)))]]
    scorer = check(MistralForCausalLM(config).eval(), groups)
    assert not scorer._trees_work


def test_batches_do_not_matter(llama) -> None:
    small = CausalScorer(llama, token_budget=1)
    for one, other in zip(small.score(GROUPS), CausalScorer(llama).score(GROUPS), strict=True):
        assert_near([value for value, _ in one], [value for value, _ in other])


def test_groups_share_trees_and_what_they_begin_with(llama) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(3, 50, (60, 2, 5), generator=generator).tolist()
    groups = [[ScoredText((2, *shared[:2], *own)) for own in (shared, other)] for shared, other in ends]
    read: list[int] = []
    handle = llama.model.register_forward_pre_hook(
        lambda _m, _args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    scorer = CausalScorer(llama)
    scorer.score(groups[:1])  # finds out what works
    read.clear()
    results = scorer.score(groups)
    handle.remove()
    # a beginning and two ends of four tokens each, and hardly a first token or padding besides
    assert sum(read) <= 1.1 * 60 * (2 + 2 * 4)
    for group, found in zip(groups, results, strict=True):
        plain = [plainly(llama, text) for text in group]
        assert_near([total for total, _ in found], plain)


@pytest.mark.parametrize(
    ("groups", "nodes"),
    [
        ([[ScoredText((2, *range(3, 45), own, own + 1, 49))] for own in range(3, 40)], 43 + 37 * 2),
        ([[ScoredText((2, *range(3, 12)))]] * 100, 9),
    ],
)
def test_long_common_beginnings_and_repetitions_are_read_about_once(llama, groups, nodes) -> None:
    scorer = CausalScorer(llama)
    scorer.score([[ScoredText((2, 3, 4)), ScoredText((2, 5, 4))]])
    trees, _ = scorer._plant([text for group in groups for text in group])
    assert nodes <= sum(len(tree.ids) for tree in trees) <= 1.6 * nodes
    check(llama, groups)


def test_a_tree_reads_a_common_beginning_once_and_no_last_token() -> None:
    tree = TokenTree.of([(1, 2, 3, 4), (1, 2, 5, 6)])
    assert tree.ids == [1, 2, 3, 5]
    assert tree.depths == [0, 1, 2, 2]
    assert [[tree.edge_tokens[e] for e in path] for path in tree.paths] == [[2, 3, 4], [2, 5, 6]]
    visible = tree.visible(5)
    assert visible[3].tolist() == [True, True, False, True, False]
    assert not tree.is_chain
    assert TokenTree.of([(1, 2, 3)]).is_chain


def test_logits_are_only_asked_where_a_token_is_scored_and_once_a_place(llama) -> None:
    group = [ScoredText((1, 2, 3, 4), 3), ScoredText((1, 2, 3, 5), 3), ScoredText((1, 2, 6, 7), 3)]
    scorer = CausalScorer(llama)
    expected = scorer.score([group])
    rows: list[int] = []
    handle = llama.lm_head.register_forward_hook(lambda _m, _a, logits: rows.append(logits.shape[0]))
    assert scorer.score([group]) == expected
    handle.remove()
    assert rows == [2]  # behind (1, 2, 3) and behind (1, 2, 6)
    plain = [CausalScorer(llama).score([[text]])[0][0] for text in group]
    for (total, count), (alone, _) in zip(expected[0], plain, strict=True):
        assert count == 1
        assert_near(total, alone)


MASKED = [
    (BertForMaskedLM, BertConfig(**SMALL)),
    (RobertaForMaskedLM, RobertaConfig(pad_token_id=1, **SMALL)),
    (
        DistilBertForMaskedLM,
        DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, initializer_range=0.5),
    ),
]


@pytest.mark.parametrize(("kind", "config"), MASKED)
def test_masked_scores_equal_masking_one_token_at_a_time(kind, config) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    sentences = [((2, 5, 6, 7, 3), (1, 2, 3)), ((2, 5, 9, 3), (2,)), ((2, 3), ())]
    results = MaskedScorer(model, 4, token_budget=12).score([MaskedText(*parts) for parts in sentences])
    for (ids, positions), (total, count) in zip(sentences, results, strict=True):
        expected = 0.0
        for position in positions:
            masked = torch.tensor([ids])
            masked[0, position] = 4
            with torch.no_grad():
                expected += model(masked).logits[0, position].log_softmax(dim=-1)[ids[position]].item()
        assert_near(total, expected)
        assert count == len(positions)


def test_the_vocabulary_is_asked_at_the_masks_only() -> None:
    model = BertForMaskedLM(BertConfig(**SMALL)).eval()
    shapes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _head, _args, logits: shapes.append(tuple(logits.shape)))
    MaskedScorer(model, 4).score([MaskedText((2, 5, 6, 7, 3), (1, 2, 3)), MaskedText((2, 5, 3), (1,))])
    handle.remove()
    assert shapes == [(4, 1, 64)]
    assert not head._forward_pre_hooks


def test_a_model_that_sees_what_it_is_to_predict_is_refused() -> None:
    config = RobertaConfig(pad_token_id=1, **SMALL)
    with pytest.raises(UnsupportedModelError, match="AutoModelForMaskedLM"):
        CausalScorer(RobertaForCausalLM(config).eval())
    config.is_decoder = True
    check(RobertaForCausalLM(config).eval())


def test_models_and_texts_that_cannot_be_scored_are_refused(llama) -> None:
    small = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 16}
    t5 = T5ForConditionalGeneration(T5Config(**small))
    with pytest.raises(UnsupportedModelError, match="continues no text"):
        CausalScorer(t5)
    bert = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UnsupportedModelError, match="no language-model head"):
        CausalScorer(BertModel(BertConfig(vocab_size=16, **bert)))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InvalidOptionError, match="longer than the model's 64 positions"):
        CausalScorer(gpt2).score([[ScoredText((5,) * 65)]])
    with pytest.raises(TokenizerError, match="don't belong together"):
        CausalScorer(llama).score([[ScoredText((5, 10**6))]])


def test_masked_texts_are_checked_before_they_run() -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=16, max_position_embeddings=34, pad_token_id=1, **small)
    model = RobertaForMaskedLM(config).eval()
    scorer = MaskedScorer(model, 4)
    assert scorer.score([MaskedText((5,) * 32, (0, 31))])[0][1] == 2
    # two of RoBERTa's 34 positions are never counted
    with pytest.raises(InvalidOptionError, match="33 tokens is longer than the model's 32 positions"):
        scorer.score([MaskedText((5,) * 33, (0,))])
    with pytest.raises(TokenizerError, match="don't belong together"):
        scorer.score([MaskedText((5, 99), (0,))])


def test_rotary_positions_have_no_end(llama) -> None:
    assert CausalScorer(llama).score([[ScoredText((5,) * 65)]])[0][0][1] == 64
