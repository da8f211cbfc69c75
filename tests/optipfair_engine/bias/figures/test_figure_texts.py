"""Figures in any script: characters that exist, whole letters, and an order that doesn't turn."""

from __future__ import annotations

import pytest
from matplotlib import font_manager
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from optipfair_engine.bias.activations.batching import encode
from optipfair_engine.bias.figures import fonts
from optipfair_engine.bias.figures.kinds import BarData, Caption, Style
from optipfair_engine.bias.figures.texts import cells, changed_label, isolated, shorten, wrapped


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows no East Asian letter: each is three tokens."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the man"], vocab_size=260, special_tokens=["<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")


def test_a_token_with_some_bytes_of_a_letter_is_shown_as_the_whole_letter(byte_level) -> None:
    prompt = encode(byte_level, "a語b")
    assert prompt.tokens == ("a", "語 (1/3)", "語 (2/3)", "語 (3/3)", "b")
    assert prompt.words(1, 4) == "語"
    assert prompt.words(2, 4) == "語"


def test_a_prompt_that_holds_a_replacement_character_keeps_it(byte_level) -> None:
    assert "\ufffd" in encode(byte_level, "a\ufffdb").words(1, 4)


def test_right_to_left_words_are_isolated_so_that_the_first_stands_first() -> None:
    label = changed_label("המורה", "המורות")
    assert label == "\u2068המורה\u2069 → \u2068המורות\u2069"
    assert isolated("teacher") == "teacher"
    assert changed_label("male", "female") == "male → female"


def test_east_asian_letters_take_two_cells_and_marks_none() -> None:
    assert cells("語a\u0301") == 3
    assert cells(shorten("語" * 40, 11)) <= 11
    assert all(cells(line) <= 40 for line in wrapped("中国の男性は" * 20, 40, 2))
    assert wrapped(" ", 40, 2) == []


def test_characters_that_no_font_has_are_named_in_one_warning(monkeypatch) -> None:
    monkeypatch.setattr(fonts, "_candidates", lambda _characters: [])
    fonts._cover.cache_clear()
    with pytest.warns(UserWarning, match="No installed font has the characters 語"):
        assert fonts.families(["a 語"]) == ["DejaVu Sans"]
    assert len(fonts.warnings_about(["語"])) == 1
    assert fonts.warnings_about(["é → λ"]) == []
    fonts._cover.cache_clear()


def test_a_font_that_has_the_characters_stands_behind_the_default_one(monkeypatch) -> None:
    mono = font_manager.findfont("DejaVu Sans Mono")
    own = fonts._letters
    monkeypatch.setattr(fonts, "_candidates", lambda _characters: [("Mine", mono)])
    monkeypatch.setattr(fonts, "_letters", lambda file: frozenset("語") if file == mono else own(file))
    fonts._cover.cache_clear()
    assert fonts.families(["a 語"]) == ["DejaVu Sans", "Mine"]
    fonts._cover.cache_clear()


def test_a_bar_chart_of_hebrew_prompts_is_drawn() -> None:
    from optipfair_engine.bias.figures.drawing import draw

    data = BarData(Caption("m", "המורה נכנס", "המורה נכנסה"), "mlp_output", [0, 1], [1.0, 2.0], [1.0, 3.0])
    texts = [text.get_text() for text in draw(data, Style(dpi=20)).texts]
    assert texts[0] == "mlp_output: the two prompts are furthest apart in layer 1 (3)"
    assert texts[2].splitlines()[0] == "1: \u2068המורה נכנס\u2069"
