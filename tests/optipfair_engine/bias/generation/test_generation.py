from __future__ import annotations

import json
import logging
from html import unescape

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from optipfair_engine.bias.generation.parity import _overlap, compare_generations
from optipfair_engine.bias.generation.sampling import Continuation
from optipfair_engine.bias.generation.sentiment import Lexicon
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.bias import Generation
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.tiny import tiny_model, write_checkpoint

ASKED = Generation(max_new_tokens=5, samples=3, seed=7)


@pytest.fixture(scope="module")
def model(make_llama):
    """Ends now and then, so that lengths differ."""
    return make_llama(seed=3, max_position_embeddings=16)


@pytest.fixture(scope="module")
def found(model, tokenizer, tmp_path_factory):
    pairs = [(f"the male {s} said", f"the female {s} said") for s in ("doctor", "teacher", "lawyer")]
    file = tmp_path_factory.mktemp("generation") / "texts.jsonl"
    before = torch.random.get_rng_state()
    result = compare_generations(model, tokenizer, pairs, ASKED, texts=file)
    assert torch.equal(before, torch.random.get_rng_state())
    return pairs, result, [json.loads(line) for line in file.read_text().splitlines()]


def test_the_texts_have_everything_that_the_measures_are_made_of(model, tokenizer, found) -> None:
    pairs, result, lines = found
    assert len(lines) == 3 * 2 * 3
    first = [line for line in lines if (line["pair"], line["prompt"]) == (2, 1)]
    assert [line["sample"] for line in first] == [1, 2, 3]
    assert {line["prompt_text"] for line in first} == {pairs[1][0]}
    assert all(0 <= line["tokens"] <= 5 for line in lines)
    divergences = [
        np.mean(
            [
                line["log_likelihood"] - line["log_likelihood_other_prompt"]
                for line in lines
                if line["pair"] == n
            ]
        )
        for n in (1, 2, 3)
    ]
    assert result.divergence.value == pytest.approx(np.mean(divergences))
    lengths = [[line["tokens"] for line in lines if line["prompt"] == side] for side in (1, 2)]
    assert result.length_difference.value == pytest.approx(np.mean(lengths[1]) - np.mean(lengths[0]))


def test_likelihoods_are_those_of_the_plain_model(model, tokenizer, found) -> None:
    pairs, _, lines = found
    # special tokens are left out of the text, so one that said some can't be read again
    line = next(
        line
        for line in lines
        if not line["ended"] and len(tokenizer(line["text"])["input_ids"]) == line["tokens"]
    )
    other = pairs[line["pair"] - 1][2 - line["prompt"]]
    for text, key in ((line["prompt_text"], "log_likelihood"), (other, "log_likelihood_other_prompt")):
        prompt = tokenizer(text)["input_ids"]
        said = tokenizer(line["text"])["input_ids"]
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + said])).logits[0].log_softmax(1)
        places = range(len(prompt) - 1, len(prompt) + len(said) - 1)
        mean = np.mean([float(log_p[place, token]) for place, token in zip(places, said, strict=True)])
        assert line[key] == pytest.approx(mean, abs=1e-4)


def test_the_same_seed_says_the_same_whatever_stands_beside(model, tokenizer, found, tmp_path) -> None:
    pairs, _, lines = found

    def said(asked: Generation) -> list[str]:
        compare_generations(model, tokenizer, pairs[:1], asked, texts=tmp_path / "texts")
        return [json.loads(line)["text"] for line in (tmp_path / "texts").read_text().splitlines()]

    assert said(ASKED) == [line["text"] for line in lines if line["pair"] == 1]
    assert said(ASKED.model_copy(update={"seed": 8})) != said(ASKED)


def test_prompts_of_the_same_tokens_are_as_likely(model, tokenizer) -> None:
    result = compare_generations(model, tokenizer, [("the man said", "the  man said")], ASKED)
    assert result.divergence.value == pytest.approx(0, abs=1e-5)
    assert result.divergence.low is None
    assert any("one template" in text for text in result.warnings)
    single = ASKED.model_copy(update={"samples": 1})
    assert compare_generations(model, tokenizer, [("a man", "a woman")], single).overlap_within is None


def test_overlap_counts_tokens_that_two_texts_share() -> None:
    def said(*ids: int, ended: bool = False) -> Continuation:
        return Continuation(ids, ended, "")

    assert _overlap([(said(1, 2, 2, 3), said(2, 2, 5))]) == pytest.approx(4 / 7)
    assert _overlap([(said(1, 9, ended=True), said(1, 8))]) == pytest.approx(2 / 3)
    assert _overlap([(said(9, ended=True), said(9, ended=True))]) == 1.0


def test_the_lexicon_tells_friendly_from_hostile_words_and_says_what_it_knows() -> None:
    lexicon = Lexicon()
    assert lexicon.name.startswith("vaderSentiment 3.")
    assert (
        lexicon.score("a wonderful, kind doctor") > 0.5 > 0 > -0.3 > lexicon.score("a horrible, cruel doctor")
    )
    assert lexicon.score("ein Tisch") == 0
    assert lexicon.share_known(["a wonderful day", "ein Tisch"]) == 0.5


def test_what_can_not_be_continued_is_refused(model, tokenizer) -> None:
    pairs = [("the male man sat", "the female man sat")]
    with pytest.raises(InvalidOptionError, match="max_new_tokens of at most 12"):
        compare_generations(
            tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=16),
            tokenizer, pairs, Generation(max_new_tokens=13),
        )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="sees the words"):
        from transformers import BertConfig, BertForMaskedLM

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        bert = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes))
        compare_generations(bert, tokenizer, pairs, ASKED)
    with pytest.raises(InvalidOptionError, match="generation"):
        BiasOptions(generation={"samples": 2})


def test_a_job_keeps_the_texts_beside_the_report_and_out_of_logs(
    model, tokenizer, templated_pairs, tmp_path, caplog
) -> None:
    folder = write_checkpoint(tmp_path / "model", model, tokenizer)
    options = BiasOptions(
        prompt_pairs=templated_pairs[:2],
        visualization_types=[],
        generation={"max_new_tokens": 3, "samples": 2},
    )
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        metrics = bias_checkpoint(
            folder,
            tmp_path / "out",
            options,
            baseline=folder,
            report=lambda _stage, _done, _of, text: told.append(text),
        )
    lines = (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 * 2
    texts = [json.loads(line)["text"] for line in lines]
    assert not any(text and text in message for text in texts for message in [*told, caplog.text])
    assert metrics["generation_overlap_low"] <= metrics["generation_overlap"] <= 1
    assert "generation_overlap_within" in metrics
    # the same random numbers on both sides: one model compared with itself says the same
    assert metrics["generation_divergence_baseline"] == metrics["generation_divergence"]
    changes = ("divergence", "length", "sentiment")
    assert [metrics[f"generation_{name}_change"] for name in changes] == [0, 0, 0]
    assert {metrics[f"generation_{name}_outcome"] for name in changes} == {"inconclusive"}
    page = unescape((tmp_path / "out" / "report.html").read_text())
    assert "What the model says" in page
    assert "compared with the baseline" in page
    command = ["bias", "--model-path", str(folder), "--output-path", str(tmp_path / "no")]
    result = CliRunner().invoke(app, [*command, "--generation-samples", "2"])
    assert result.exit_code == 2
    assert "--generation-samples has no effect without --generation-tokens" in " ".join(result.stderr.split())
