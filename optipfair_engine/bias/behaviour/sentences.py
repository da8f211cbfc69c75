"""The (pseudo-)log-likelihoods of sentences, beside one another: what every suite of preferences rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.activations.batching import number_type_hint
from optipfair_engine.bias.behaviour.likelihood import (
    CausalScorer,
    MaskedScorer,
    MaskedText,
    ScoredText,
    is_masked_model,
    start_token,
)
from optipfair_engine.calibration.text import encode
from optipfair_engine.errors import NonFiniteResultError, TokenizerError
from optipfair_engine.progress import Reporter

Table = npt.NDArray[np.float64]


def refuse_non_finite(scores: Table, texts: Sequence[str], model: Any) -> None:
    """NaN compares as "not preferred": a model that overflows would look like one without stereotypes."""
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise NonFiniteResultError(
            f"Item {broken[0]} ({texts[broken[0]][:60]!r}) has a log-probability that is no finite number, "
            f"as have {len(broken)} of {len(scores)} items: {number_type_hint(model)}"
        )


def pair_scores(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], report: Reporter
) -> tuple[Table, Table, str]:
    """Scores and numbers of tokens ``[pairs, 2]`` of pairs of sentences, and what the scores are.

    A causal model's score is Σ log p of all tokens, after a start token; a masked model's Σ log p of the
    tokens that both sentences share, each masked in turn (Nangia et al. 2020).

    Raises:
        TokenizerError: no start (or mask) token.
        UnsupportedModelError: unknown family, or no language-model head.
    """
    if is_masked_model(model):
        return (*masked_pairs(model, tokenizer, texts, report), "pseudo-log-likelihood of shared tokens")
    groups = [[(None, text) for text in pair] for pair in texts]
    return (*causal_groups(model, tokenizer, groups, report), "log-likelihood")


def perplexity_of(loss: float, tokens: float) -> float | None:
    """Of the summed loss; null without tokens, and where a float has no such number (a loss above 700)."""
    return math.exp(loss / tokens) if tokens and loss / tokens < 700 else None


def causal_groups(
    model: Any,
    tokenizer: Any,
    groups: Sequence[Sequence[tuple[str | None, str]]],
    report: Reporter,
) -> tuple[Table, Table]:
    """Sums and numbers of tokens ``[groups, texts]`` of (context, text); only the text is scored."""
    start = start_token(tokenizer)
    wholes = [text if context is None else f"{context} {text}" for group in groups for context, text in group]
    contexts = sorted({context for group in groups for context, _ in group if context is not None})
    # without special tokens: the start token is put before by hand, the same for every family
    ids = {text: encode(tokenizer, text) for text in dict.fromkeys(wholes)}
    before = {text: encode(tokenizer, text) for text in contexts}
    sequences = []
    for group in groups:
        row = []
        for context, text in group:
            whole = ids[text if context is None else f"{context} {text}"]
            shared = 0 if context is None else common_start(whole, before[context])
            row.append(ScoredText((start, *whole), 1 + min(shared, len(whole) - 1)))
        sequences.append(row)
    results = CausalScorer(model).score(sequences, report=report)
    table = np.array(results, dtype=np.float64)
    return table[..., 0], table[..., 1]


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def masked_ids(tokenizer: Any, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ids with special tokens, positions of the text's own tokens)."""
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids = tuple(int(i) for i in encoded["input_ids"])
    return ids, tuple(n for n, special in enumerate(encoded["special_tokens_mask"]) if not special)


def mask_id(tokenizer: Any) -> int:
    """The id of the mask token.

    Raises:
        TokenizerError: there is none.
    """
    value = getattr(tokenizer, "mask_token_id", None)
    if not isinstance(value, int):
        raise TokenizerError("A masked model's tokenizer needs a mask token, and this one has none")
    return value


def masked_pairs(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], report: Reporter
) -> tuple[Table, Table]:
    """The paper's score: only the tokens that both sentences share are masked and scored."""
    sentences: list[MaskedText] = []
    for pair in texts:
        (ids1, own1), (ids2, own2) = (masked_ids(tokenizer, text) for text in pair)
        matcher: SequenceMatcher[int] = SequenceMatcher(None, ids1, ids2, autojunk=False)
        blocks = [(b.a + i, b.b + i) for b in matcher.get_matching_blocks() for i in range(b.size)]
        shared = [(a, b) for a, b in blocks if a in own1 and b in own2]
        sentences.append(MaskedText(ids1, tuple(a for a, _ in shared)))
        sentences.append(MaskedText(ids2, tuple(b for _, b in shared)))
    results = MaskedScorer(model, mask_id(tokenizer)).score(sentences, report=report)
    table = np.array(results, dtype=np.float64).reshape(len(texts), 2, 2)
    return table[..., 0], table[..., 1]
