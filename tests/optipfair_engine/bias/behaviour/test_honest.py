"""HONEST: read as published, and equal to looking up one sentence's likeliest words at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optipfair_engine.bias.behaviour.completions import words_behind
from optipfair_engine.bias.behaviour.honest import WORDS, score_honest
from optipfair_engine.bias.prompts.honest import plain, read_honest
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.progress import null_reporter
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.suite_files import honest
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint


def likeliest(model, tokenizer, text: str) -> list[str]:
    """The likeliest words of a word-level model, a call for each sentence."""
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        order = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
    words = [tokenizer.decode([token]) for token in order]
    return [word for word in words if word[:1].isalpha()][:WORDS]


def test_a_score_is_the_share_of_the_likeliest_words_that_the_lexicon_has(
    llama, tokenizer, tmp_path: Path
) -> None:
    first = likeliest(llama, tokenizer, "the woman sat near the")
    found = read_honest(list(honest(tmp_path, [first[0].upper(), first[2]]).iterdir()))
    assert len(found.items) == 12 and found.hurtful == {first[0].lower(), first[2].lower()}
    shares = {
        (item.group, item.template, item.before): 100
        * sum(plain(word) in found.hurtful for word in likeliest(llama, tokenizer, item.before))
        / WORDS
        for item in found.items
    }
    scores = score_honest(llama, tokenizer, found).scores
    score = scores.overall.measures["score"]
    assert score is not None and score.value == pytest.approx(sum(shares.values()) / 12)
    assert score.low is not None and score.low <= score.value <= score.high
    for group in ("female", "male"):
        alone = [share for (name, *_), share in shares.items() if name == group]
        assert scores.categories[group].measures["score"].value == pytest.approx(sum(alone) / len(alone))
    assert scores.overall.templates == 3 and scores.perplexity > 1


def test_a_word_of_several_tokens_is_finished() -> None:
    text = "the nurse is a wonderful person and the baker is a terrible person"
    tokenizer = byte_tokenizer([text], vocab_size=270)
    model = tiny_llama(vocab_size=len(tokenizer))
    words = words_behind(model, tokenizer, ["the nurse is a"], 5, null_reporter)[0]
    assert all(word == word.strip() and word[:1].isalpha() and " " not in word for word in words)


def test_a_masked_model_fills_the_mask(tokenizer, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    every = sorted({tokenizer.decode([token]) for token in range(len(tokenizer))})
    scores = score_honest(bert, tokenizer, read_honest(list(honest(tmp_path, every).iterdir()))).scores
    assert scores.overall.measures["score"].value == 100
    assert scores.perplexity is None


def test_a_suite_by_name_beside_a_baseline(llama, make_llama, tokenizer, tmp_path: Path) -> None:
    models = [
        write_checkpoint(tmp_path / name, model, tokenizer)
        for name, model in (("after", llama), ("before", make_llama(seed=3)))
    ]
    said = likeliest(llama, tokenizer, "the woman sat near the")
    honest(tmp_path / "suites" / "honest", said[:2])
    options = BiasOptions(suites=["honest"])
    metrics = bias_checkpoint(
        models[0], tmp_path / "out", options, baseline=models[1], suites_folder=tmp_path / "suites"
    )
    change = metrics["honest.score"] - metrics["honest.score_baseline"]
    assert metrics["honest.score_change"] == pytest.approx(change)
    assert metrics["honest.outcome"] in ("better", "worse", "inconclusive")
    assert {"honest.female.score", "honest.male.score_change"} <= metrics.keys()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Hurtful words among the completions" in page and "hurtfully than" in page


def test_tables_of_another_form_are_refused(tmp_path: Path) -> None:
    folder = honest(tmp_path, ["bad"])
    (folder / "hurtlex_EN.tsv").write_text("lemma\tlevel\nmild\tinclusive\n")
    with pytest.raises(InvalidOptionError, match="no word of the level conservative"):
        read_honest(list(folder.iterdir()))
    honest(folder, ["bad"])
    (folder / "en_template.tsv").write_text("template_masked\traw\tmf\nthe man sat\t[I] sat\tmale\n")
    with pytest.raises(InvalidOptionError, match=r"one \[M\] behind its first words: 'the man sat'"):
        read_honest(list(folder.iterdir()))
    with pytest.raises(InvalidOptionError, match="columns lemma, level"):
        (folder / "hurtlex_EN.tsv").write_text("word\nbad\n")
        read_honest(list(folder.iterdir()))
