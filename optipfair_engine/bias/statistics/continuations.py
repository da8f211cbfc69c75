"""Before and after of what two prompts of a pair are continued with: next tokens, and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from optipfair_engine.bias.results.changes import Change
from optipfair_engine.bias.results.continuations import NEXT_TOKEN, ContinuationChanges
from optipfair_engine.bias.results.generations import DIVERGENCE, LENGTH, SENTIMENT, Generations
from optipfair_engine.bias.statistics.comparison import DEFAULT_MARGIN, paired_change
from optipfair_engine.bias.statistics.significance import (
    Array,
    bootstrap_interval,
    bootstrap_means,
    outcome,
)

#: Changes of a mean's absolute value that are not worth the name: in tokens, and of a score from −1 to 1.
SIZE_MARGINS: Final = {LENGTH: 0.5, SENTIMENT: 0.02}
READING_WARNING: Final = (
    "A model that reads less of its prompt continues two prompts more alike without being any fairer: look "
    "at perplexity too."
)


def continuation_changes(
    templates: Sequence[str],
    *,
    distances: tuple[Array, Array] | None = None,
    generations: tuple[Generations, Generations] | None = None,
    margin: float = DEFAULT_MARGIN,
    seed: int = 0,
) -> ContinuationChanges:
    """Changes from one model to another on the same pairs, paired by pair and clustered by template.

    Distances (of next-token distributions, and the likelihood that a text owes to its prompt) change
    relatively and are judged against ``margin``. Signed differences (length, sentiment) may lie on either
    side of 0 in both models, so what is compared is the absolute value of their means, judged against
    ``SIZE_MARGINS``.

    Args:
        templates: each pair's template ``[pairs]``.
        distances: total variation distances before and after ``[pairs]``.
        generations: what was said before and after.
        margin: relative change that doesn't count.
        seed: of the bootstrap.
    """
    found: dict[str, Change] = {}
    sizes: dict[str, Change] = {}
    if distances is not None:
        found[NEXT_TOKEN] = paired_change(*distances, templates, margin, seed)
    if generations is not None:
        before, after = (
            {name: np.asarray(values, dtype=float) for name, values in side.by_pair.items()}
            for side in generations
        )
        found[DIVERGENCE] = paired_change(before[DIVERGENCE], after[DIVERGENCE], templates, margin, seed)
        for name, least in SIZE_MARGINS.items():
            sizes[name] = _size_change(before[name], after[name], templates, least, seed)
    margins = {name: SIZE_MARGINS[name] for name in sizes}
    return ContinuationChanges(margin, found, sizes, margins, (READING_WARNING,))


def _size_change(before: Array, after: Array, templates: Sequence[str], margin: float, seed: int) -> Change:
    """How much further from 0 the mean of signed values ``[pairs]`` lies."""
    first, second = float(before.mean()), float(after.mean())
    drawn = np.abs(bootstrap_means(np.column_stack([before, after]), templates, seed=seed))
    delta = bootstrap_interval(abs(second) - abs(first), drawn[:, 1] - drawn[:, 0], len(set(templates)))
    return Change(first, second, delta, None, outcome(delta, margin))
