"""Prompts of other scripts: the right letters are compared, and the right words marked in a figure."""

from __future__ import annotations

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from optipfair_engine.bias.activations.batching import encode
from optipfair_engine.bias.activations.stream import EncodedPair, encode_pairs
from optipfair_engine.bias.figures.canvas import VERMILLION
from optipfair_engine.bias.figures.drawing import draw
from optipfair_engine.bias.figures.kinds import Style
from optipfair_engine.bias.figures.selection import caption_of, heatmap_data, unit_labels
from optipfair_engine.bias.prompts.alignment import align


def _byte_level(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")


@pytest.fixture(scope="module")
def bytes_only() -> PreTrainedTokenizerFast:
    """Every byte beyond ASCII is a token of its own."""
    return _byte_level(["the man"], 257)


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """Knows some letters and pieces of words, as models' tokenizers do."""
    texts = [
        "医生走回家了 是医生 看護師 エンジニア",
        "الطبيب إلى البيت ممرض",
        "El médico llegó tarde",
        "était fatigué",
    ]
    return _byte_level(texts * 20, 340)


def _pair(tokenizer, first: str, second: str) -> EncodedPair:
    (pair,) = encode_pairs(tokenizer, [(first, second)])
    return pair


def _marked(pair: EncodedPair) -> list[str]:
    """The labels that a drawn heatmap marks as changed."""
    values = torch.rand(2, len(pair.alignment.compared), 4)
    data = heatmap_data("mlp_output_layer_0", pair, values[0], values[1], caption_of(pair, "m"))
    texts = draw(data, Style(dpi=20)).axes[0].get_yticklabels()
    return [text.get_text().removesuffix("  ▸") for text in texts if text.get_color() == VERMILLION]


def _without_parts(labels: list[str]) -> set[str]:
    """``男 (1/3) → 女 (1/3)`` as ``男 → 女``; marks of direction taken off."""
    clean = (label.translate({0x2068: None, 0x2069: None}) for label in labels)
    return {" → ".join(side.split(" (")[0] for side in label.split(" → ")) for label in clean}


#: first prompt, second prompt, what is marked, and what stands in one prompt only.
CASES = {
    "Chinese": ("男医生走回家了", "女医生走回家了", {"男 → 女"}, []),
    "Chinese, one letter more": ("男医生走回家了", "女性医生走回家了", {"男 → 女性"}, []),
    "Japanese": ("その男性は医者です", "その女性は医者です", {"男 → 女"}, []),
    "Japanese, a letter put in": ("彼は看護師だ", "彼女は看護師だ", set(), ["女"]),
    "Japanese, shared bytes": ("若いエンジニア", "年老いたエンジニア", {"若 → 年老"}, ["た"]),
    "Arabic": ("هو في البيت", "هي في البيت", {"و → ي"}, []),
    "Arabic, an ending": ("الطبيب إلى البيت", "الطبيبة إلى البيت", set(), ["ة"]),
    "accents": ("un garçon fatigué", "un garcon fatigué", {"ç → c"}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_right_letters_are_marked_where_every_byte_is_a_token(bytes_only, case) -> None:
    first, second, marked, alone = CASES[case]
    pair = _pair(bytes_only, first, second)
    assert _without_parts(_marked(pair)) == marked
    units = [unit for unit in pair.alignment.units if not unit.aligned]
    found = [pair.first.words(u.start1, u.stop1) + pair.second.words(u.start2, u.stop2) for u in units]
    assert found == alone
    assert all(name in caption_of(pair, "m").note for name in alone)


@pytest.mark.parametrize("case", ["Chinese", "Chinese, one letter more", "Japanese, a letter put in"])
def test_and_where_tokens_are_pieces(pieces, case) -> None:
    first, second, marked, _ = CASES[case]
    assert _without_parts(_marked(_pair(pieces, first, second))) == marked


def test_words_with_accents_are_marked_whole(pieces) -> None:
    labels, changed = unit_labels(_pair(pieces, "El médico llegó tarde", "La médica llegó tarde"))
    told = [label for label, flag in zip(labels, changed, strict=True) if flag]
    assert told == ["El → La", "dico → dica"]
    assert "mé" in labels
    assert "egó" in labels


def test_letters_that_share_some_bytes_are_not_equal_in_part(bytes_only) -> None:
    """若 (E8 8B A5) and 老 (E8 80 81) begin with the same byte."""
    pair = _pair(bytes_only, "若い", "年老い")
    sizes = [(unit.kind, unit.stop1 - unit.start1, unit.stop2 - unit.start2) for unit in pair.alignment.units]
    assert sizes == [("pooled", 3, 6), *[("equal", 1, 1)] * 3]
    by_token = align(pair.first.ids, pair.second.ids)
    assert any(unit.kind == "equal" and unit.start1 == 0 for unit in by_token.units)
    swapped = _pair(bytes_only, "年老い", "若い")
    assert swapped.alignment == pair.alignment.swapped()


def test_bytes_that_two_letters_share_are_marked_with_them(bytes_only) -> None:
    labels, changed = unit_labels(_pair(bytes_only, "男a", "甲a"))  # E7 94 B7, E7 94 B2
    assert labels == ["男 (1/3) → 甲 (1/3)", "男 (2/3) → 甲 (2/3)", "男 (3/3) → 甲 (3/3)", "a"]
    assert changed == [True, True, True, False]


def test_letters_of_a_prompt_cover_all_of_its_tokens(bytes_only) -> None:
    for text, sizes in (("a語b", (1, 3, 1)), ("é", (2,)), ("👩‍⚕️", (4, 3, 3, 3)), ("a\ufffd", (1, 1, 1, 1))):
        assert encode(bytes_only, text).letters == sizes


def test_tokens_that_are_blank_can_be_seen(bytes_only) -> None:
    assert encode(bytes_only, "a \nb").tokens == ("a", "␣", "↵", "b")
