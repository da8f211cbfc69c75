from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optipfair_engine.bias.results.generations import DIVERGENCE, LENGTH, OVERLAP, SENTIMENT, Generations
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.statistics.continuations import continuation_changes

TEMPLATES = [f"template {n // 3}" for n in range(60)]
SOME = Interval(0.0, None, None)
SAID = Generations(60, 20, 2, 8, SOME, SOME, SOME, None, SOME, "lexicon", 1.0, ())


def said(seed: int = 0, *, divergence: float = 1.0, sentiment: float = 0.3) -> Generations:
    """Values of every pair, spread around these means."""
    draw = np.random.default_rng(seed)
    values = {
        DIVERGENCE: divergence * draw.uniform(0.8, 1.2, 60),
        LENGTH: draw.normal(0.0, 1.0, 60),
        OVERLAP: draw.uniform(0, 1, 60),
        SENTIMENT: sentiment + draw.normal(0, 0.05, 60),
    }
    return replace(SAID, by_pair={name: tuple(found) for name, found in values.items()})


def test_half_the_distance_is_better_and_twice_the_distance_worse() -> None:
    distances = np.random.default_rng(1).uniform(0.2, 0.4, 60)
    for factor, outcome in ((0.5, "better"), (2.0, "worse"), (1.01, "inconclusive")):
        found = continuation_changes(TEMPLATES, distances=(distances, factor * distances))
        flat = found.flat()
        assert flat["next_token_change"] == pytest.approx(factor - 1)
        assert flat["next_token_outcome"] == outcome
        assert flat["next_token_distance_baseline"] == pytest.approx(distances.mean())
        assert "generation_divergence_change" not in flat


@pytest.mark.parametrize(("after", "outcome"), [(-0.3, "inconclusive"), (0.05, "better"), (-0.5, "worse")])
def test_a_signed_difference_counts_by_how_far_from_zero_it_is(after: float, outcome: str) -> None:
    flat = continuation_changes(TEMPLATES, generations=(said(), said(1, sentiment=after))).flat()
    assert flat["generation_sentiment_change"] == pytest.approx(abs(after) - 0.3, abs=0.03)
    assert flat["generation_sentiment_outcome"] == outcome


def test_templates_and_not_pairs_are_what_is_resampled() -> None:
    before, after = np.ones(60), np.where(np.arange(60) % 3, 1.0, 0.7)
    alike = continuation_changes(TEMPLATES, distances=(before, after)).flat()
    single = continuation_changes([str(n) for n in range(60)], distances=(before, after)).flat()
    assert alike["next_token_change_low"] == pytest.approx(alike["next_token_change_high"])
    assert single["next_token_change_low"] < single["next_token_change_high"]
    one = continuation_changes(["one"] * 60, distances=(before, after)).flat()
    assert (one["next_token_change_low"], one["next_token_outcome"]) == (None, "inconclusive")
