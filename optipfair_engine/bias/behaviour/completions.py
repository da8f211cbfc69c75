"""The likeliest words at one place of a text: of causal models at its end, of masked ones at a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from optipfair_engine.architectures import locate
from optipfair_engine.bias.activations.batching import (
    Prompt,
    asked_only,
    check_continues,
    check_prompts,
    inference,
    pad,
    padding_id,
    within_budget,
)
from optipfair_engine.bias.behaviour.likelihood import TOKEN_BUDGET, start_token
from optipfair_engine.bias.behaviour.sentences import mask_id
from optipfair_engine.calibration.text import encode
from optipfair_engine.progress import Reporter

#: So many of the likeliest tokens are looked through for words.
_LOOKED_THROUGH: Final = 64
#: The longest word, in tokens.
_LONGEST: Final = 5

Ids = tuple[int, ...]


def words_behind(
    model: Any, tokenizer: Any, texts: Sequence[str], count: int, report: Reporter
) -> list[list[str]]:
    """The words that a causal model finds likeliest behind each text, at most ``count``.

    The likeliest tokens that begin a word are each continued by the likeliest token as long as that continues
    the word. Progress: stage "bias".

    Raises:
        TokenizerError: no start token.
        UnsupportedModelError: the model continues no text.
    """
    check_continues(locate(model))
    start = start_token(tokenizer)
    beginnings = [(start, *encode(tokenizer, text)) for text in texts]
    firsts = _likeliest(model, beginnings, [len(ids) - 1 for ids in beginnings], _LOOKED_THROUGH, report)
    found: list[list[Ids]] = []
    for ids, tokens in zip(beginnings, firsts, strict=True):
        begun: list[Ids] = [(t,) for t in tokens if _begins_a_word(_piece(tokenizer, ids, (t,)))]
        found.append(begun[:count])
    _finish(model, tokenizer, beginnings, found, report)
    return [
        [_piece(tokenizer, ids, word).strip() for word in words]
        for ids, words in zip(beginnings, found, strict=True)
    ]


def words_at_masks(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], count: int, report: Reporter
) -> list[list[str]]:
    """The words that a masked model finds likeliest between two halves of each text, at most ``count``.

    Words of several tokens can't be told: a mask stands for one token.

    Raises:
        TokenizerError: no mask token.
    """
    mask = mask_id(tokenizer)
    whole = [f"{before} {tokenizer.mask_token}{after}" for before, after in texts]
    rows = [tuple(int(token) for token in tokenizer(text)["input_ids"]) for text in whole]
    tokens = _likeliest(model, rows, [row.index(mask) for row in rows], _LOOKED_THROUGH, report)
    words = [[str(tokenizer.decode([token])).strip() for token in found] for found in tokens]
    return [[word for word in found if word.isalpha()][:count] for found in words]


def _finish(
    model: Any, tokenizer: Any, beginnings: Sequence[Ids], found: list[list[Ids]], report: Reporter
) -> None:
    """Let every word grow by the likeliest token until that begins another word."""
    growing = [(row, place) for row, words in enumerate(found) for place in range(len(words))]
    for _ in range(_LONGEST - 1):
        rows = [beginnings[row] + found[row][place] for row, place in growing]
        nexts = _likeliest(model, rows, [len(ids) - 1 for ids in rows], 1, report)
        longer = []
        for (row, place), ids, (token,) in zip(growing, rows, nexts, strict=True):
            if _piece(tokenizer, ids, (token,))[:1].isalpha():
                found[row][place] += (token,)
                longer.append((row, place))
        growing = longer


def _piece(tokenizer: Any, before: Ids, tokens: Ids) -> str:
    """What the tokens add to the text before them."""
    text = [
        str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for ids in (before, before + tokens)
    ]
    return text[1][len(text[0]) :]


def _begins_a_word(piece: str) -> bool:
    return piece[:1].isspace() and piece.strip()[:1].isalpha()


def _likeliest(
    model: Any, rows: Sequence[Ids], places: Sequence[int], count: int, report: Reporter
) -> list[list[int]]:
    """The likeliest tokens behind (or, of masked models, at) one place of each row, the best first."""
    view = locate(model)
    check_prompts(view, [Prompt("", ids, ()) for ids in rows])
    device, head = next(view.layers.parameters()).device, model.get_output_embeddings()
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    found: list[list[int]] = [[]] * len(rows)
    with inference(model):
        for run in within_budget([len(rows[row]) for row in order], TOKEN_BUDGET):
            chosen = [order[place] for place in run]
            batch = pad([rows[row] for row in chosen], padding_id(model))
            asked = torch.tensor([places[row] for row in chosen], device=device)
            with asked_only(head, asked):
                logits = model(
                    input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)
                ).logits
            if logits.shape[1] > 1:
                logits = logits[torch.arange(len(chosen)), asked][:, None]
            best = logits[:, 0].topk(min(count, logits.shape[-1])).indices.tolist()
            for row, tokens in zip(chosen, best, strict=True):
                found[row] = tokens
            report("bias", run.stop, len(rows), f"text {run.stop} of {len(rows)}")
    return found
