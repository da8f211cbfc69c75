"""How alike a model's continuations of the two prompts of a pair are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any, Final

import numpy as np

from optipfair_engine.architectures import locate
from optipfair_engine.bias.activations.batching import check_continues
from optipfair_engine.bias.activations.stream import EncodedPair, encode_pairs
from optipfair_engine.bias.behaviour.likelihood import CausalScorer, ScoredText
from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.generation.sampling import Continuation, continue_pairs
from optipfair_engine.bias.generation.sentiment import Lexicon
from optipfair_engine.bias.results.generations import (
    DIVERGENCE,
    LENGTH,
    OVERLAP,
    SENTIMENT,
    Generations,
)
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.statistics.significance import (
    FEW_CLUSTERS,
    Array,
    bootstrap_interval,
    bootstrap_means,
)
from optipfair_engine.options.bias import Generation
from optipfair_engine.progress import Reporter, null_reporter

#: Below this share of texts with a word of the lexicon, its score says little.
_FEW_KNOWN: Final = 0.5

Sides = tuple[list[Continuation], list[Continuation]]


@dataclass(frozen=True)
class _Scores:
    """Of one side's continuations: mean log-probability a token behind either prompt, and sentiment."""

    own: Array
    other: Array
    sentiment: Array


def compare_generations(
    model: Any,
    tokenizer: Any,
    prompt_pairs: Sequence[PromptPair],
    asked: Generation,
    *,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    texts: Path | None = None,
    report: Reporter = null_reporter,
) -> Generations:
    """Let the model continue both prompts of every pair, and compare what it says.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt_pairs: two texts each.
        asked: how many continuations of each prompt, how long, and their seed.
        templates: names of the clusters, one a pair.
        seed: of the bootstrap.
        texts: a file that the continuations are written to, one JSON object a line.
        report: progress; stages "generate" and "bias".

    Raises:
        InvalidOptionError: no pairs, or prompts too long for what shall follow.
        UnsupportedModelError: the model continues no text.
    """
    view = locate(model)
    check_continues(view)
    pairs = encode_pairs(tokenizer, prompt_pairs, templates, causal=True)
    said = continue_pairs(view, tokenizer, pairs, asked, report)
    lexicon = Lexicon()
    scores = _scored(model, pairs, said, lexicon, report)
    if texts is not None:
        _write(texts, pairs, said, scores)
    return _result(pairs, said, scores, asked, lexicon, seed)


def _scored(
    model: Any, pairs: Sequence[EncodedPair], said: Sequence[Sides], lexicon: Lexicon, report: Reporter
) -> list[tuple[_Scores, _Scores]]:
    """Every continuation behind both prompts, in one call: they share their beginnings."""
    groups = [
        [ScoredText(prompt.ids + text.ids, len(prompt.ids)) for text in side]
        for pair, sides in zip(pairs, said, strict=True)
        for side in sides
        for prompt in (pair.first, pair.second)
    ]
    found = iter(CausalScorer(model).score(groups, report=report))
    scores = []
    for sides in said:
        means = [[np.array([total / count for total, count in next(found)]) for _ in range(2)] for _ in sides]
        moods = [np.array([lexicon.score(text.text) for text in side]) for side in sides]
        first, second = means
        scores.append((_Scores(first[0], first[1], moods[0]), _Scores(second[1], second[0], moods[1])))
    return scores


def _result(
    pairs: Sequence[EncodedPair],
    said: Sequence[Sides],
    scores: Sequence[tuple[_Scores, _Scores]],
    asked: Generation,
    lexicon: Lexicon,
    seed: int,
) -> Generations:
    templates = [pair.template for pair in pairs]
    known = lexicon.share_known([text.text for sides in said for side in sides for text in side])
    columns = {
        DIVERGENCE: [np.mean([np.mean(side.own - side.other) for side in both]) for both in scores],
        LENGTH: [_length(second) - _length(first) for first, second in said],
        OVERLAP: [_overlap(list(product(*sides))) for sides in said],
        SENTIMENT: [second.sentiment.mean() - first.sentiment.mean() for first, second in scores],
    }
    if asked.samples > 1:
        columns["within"] = [
            np.mean([_overlap(list(permutations(side, 2))) for side in sides]) for sides in said
        ]
    found = _intervals(columns, templates, seed)
    return Generations(
        pairs=len(pairs),
        templates=len(set(templates)),
        samples=asked.samples,
        max_new_tokens=asked.max_new_tokens,
        divergence=found[DIVERGENCE],
        length_difference=found[LENGTH],
        overlap=found[OVERLAP],
        overlap_within=found.get("within"),
        sentiment_difference=found[SENTIMENT],
        lexicon=lexicon.name,
        lexicon_known=known,
        warnings=tuple(_warnings(len(set(templates)), known)),
        by_pair={name: tuple(map(float, columns[name])) for name in (DIVERGENCE, LENGTH, OVERLAP, SENTIMENT)},
    )


def _length(side: Sequence[Continuation]) -> float:
    return float(np.mean([len(text.words) for text in side]))


def _overlap(couples: Sequence[tuple[Continuation, Continuation]]) -> float:
    """Mean share of tokens that two texts have in common, 2·|a ∩ b| / (|a| + |b|); two empty ones: 1."""
    shares = []
    for first, second in couples:
        total = len(first.words) + len(second.words)
        common = (Counter(first.words) & Counter(second.words)).total()
        shares.append(2 * common / total if total else 1.0)
    return float(np.mean(shares))


_BOUNDS: Final = {OVERLAP: (0.0, 1.0), "within": (0.0, 1.0), SENTIMENT: (-2.0, 2.0)}


def _intervals(columns: dict[str, list[Any]], templates: Sequence[str], seed: int) -> dict[str, Interval]:
    drawn = bootstrap_means(np.column_stack(list(columns.values())).astype(float), templates, seed=seed)
    found = {}
    for number, (name, values) in enumerate(columns.items()):
        least, greatest = _BOUNDS.get(name, (-np.inf, np.inf))
        found[name] = bootstrap_interval(
            float(np.mean(values)), drawn[:, number], len(set(templates)), least=least, greatest=greatest
        )
    return found


def _write(
    path: Path,
    pairs: Sequence[EncodedPair],
    said: Sequence[Sides],
    scores: Sequence[tuple[_Scores, _Scores]],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for pair, sides, both in zip(pairs, said, scores, strict=True):
            for side, prompt in enumerate((pair.first, pair.second)):
                for number, text in enumerate(sides[side]):
                    line = {
                        "pair": pair.index + 1,
                        "template": pair.template,
                        "prompt": side + 1,
                        "prompt_text": prompt.text,
                        "sample": number + 1,
                        "text": text.text,
                        "tokens": len(text.words),
                        "ended": text.ended,
                        "log_likelihood": float(both[side].own[number]),
                        "log_likelihood_other_prompt": float(both[side].other[number]),
                        "sentiment": float(both[side].sentiment[number]),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _warnings(templates: int, known: float) -> list[str]:
    found = []
    if known < _FEW_KNOWN:
        found.append(
            f"The sentiment lexicon is English and knows a word of {known:.0%} of the continuations only: "
            "its difference says little."
        )
    if templates == 1:
        found.append(
            "Continuations of one template: nothing says how others would come out, so no intervals."
        )
    elif templates < FEW_CLUSTERS:
        found.append(f"Continuations of only {templates} templates: the intervals are wide.")
    return found
