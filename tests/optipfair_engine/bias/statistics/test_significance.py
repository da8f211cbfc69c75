from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from optipfair_engine.bias.statistics.significance import (
    Interval,
    benjamini_hochberg,
    bootstrap_interval,
    bootstrap_means,
    detectable_mean,
    detectable_share,
    holm,
    mcnemar,
    mcnemar_clustered,
    outcome,
    t_test,
    wilson,
)
from tests.numbers import assert_near


def test_wilson_matches_a_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263
    interval = wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(10, 2) == pytest.approx(stats.binomtest(10, 12).pvalue)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)


def test_holm_matches_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_hochberg_finds_what_is_there() -> None:
    p = np.r_[np.full(5, 1e-6), np.linspace(0.05, 1, 95)]
    assert (benjamini_hochberg(p) <= 0.05).sum() == 5


def test_t_test_agrees_with_scipy_and_survives_no_variance() -> None:
    x = np.random.default_rng(0).normal(loc=[0, 1, 2, 3], size=(9, 4))
    t, p = t_test(x.mean(axis=0), np.square(x - x.mean(axis=0)).sum(axis=0), 9)
    expected = stats.ttest_1samp(x, 0)
    np.testing.assert_allclose(t, expected.statistic)
    np.testing.assert_allclose(p, expected.pvalue)
    t, p = t_test(np.array([0.0, 2.0]), np.zeros(2), 5)
    assert list(p) == [1.0, 0.0]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """With 30 templates of 4 correlated pairs each; counting pairs as independent would cover about 60 %."""
    rng = np.random.default_rng(1)
    clusters = [str(i // 4) for i in range(120)]
    covered = 0
    for trial in range(120):
        values = (rng.normal(size=30).repeat(4) + 0.2 * rng.normal(size=120))[:, None]
        interval = bootstrap_interval(
            float(values.mean()), bootstrap_means(values, clusters, samples=400, seed=trial)[:, 0], 30
        )
        covered += interval.low <= 0 <= interval.high
    assert 0.86 <= covered / 120 <= 1.0


def test_the_bootstrap_is_paired_by_its_seed() -> None:
    values = np.random.default_rng(0).normal(size=(12, 2))
    clusters = [str(i % 5) for i in range(12)]
    both = bootstrap_means(values, clusters, seed=4)
    difference = bootstrap_means(values[:, 1:] - values[:, :1], clusters, seed=4)[:, 0]
    assert_near(both[:, 1] - both[:, 0], difference, 1e-12)


def test_the_detectable_mean_is_found_with_the_power_it_claims() -> None:
    rng = np.random.default_rng(2)
    clusters = [str(i) for i in range(15)]
    effect = np.mean([detectable_mean(rng.normal(size=15), clusters) for _ in range(200)])
    found = sum(stats.ttest_1samp(rng.normal(size=15) + effect, 0).pvalue < 0.05 for _ in range(600))
    assert 0.72 <= found / 600 <= 0.88
    assert detectable_mean(np.ones(2), ["a", "b"]) is None


def test_the_detectable_share_is_the_textbook_one() -> None:
    assert detectable_share(1508) == pytest.approx(2.8016 * math.sqrt(0.25 / 1508), rel=1e-3)
    assert detectable_share(0) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.06, 0.2, "worse"),
        (0.04, 0.2, "inconclusive"),
        (-0.2, -0.06, "better"),
        (-0.2, 0.2, "inconclusive"),
        (None, None, "inconclusive"),
    ],
)
def test_the_outcome_needs_the_whole_interval_beyond_the_margin(low, high, expected) -> None:
    assert outcome(Interval(0.0, low, high), margin=0.05) == expected


def coverage(clusters: int, trials: int = 400) -> float:
    """How often the interval of a mean of templates (two pairs each) has the true one in it."""
    rng = np.random.default_rng(clusters)
    names = [str(i // 2) for i in range(2 * clusters)]
    covered = 0
    for trial in range(trials):
        values = rng.normal(size=clusters).repeat(2)[:, None] + 0.1 * rng.normal(size=(2 * clusters, 1))
        drawn = bootstrap_means(values, names, samples=500, seed=trial)[:, 0]
        interval = bootstrap_interval(float(values.mean()), drawn, clusters)
        covered += interval.low <= 0 <= interval.high
    return covered / trials


@pytest.mark.parametrize("clusters", [2, 3, 5, 7])
def test_few_templates_are_covered_too(clusters: int) -> None:
    """Plain percentiles cover 52 %, 70 %, 83 % and 85 %."""
    assert 0.9 <= coverage(clusters) <= 0.98


def test_an_interval_stays_within_what_the_quantity_can_be() -> None:
    values = np.array([[0.1], [3.0]])
    drawn = bootstrap_means(values, ["a", "b"])[:, 0]
    interval = bootstrap_interval(1.55, drawn, 2, least=0, greatest=4)
    assert (interval.low, interval.high) == (0.0, 4.0)
    assert bootstrap_interval(1.0, drawn, 1).low is None


def test_clustered_mcnemar_with_one_item_each_is_mcnemars_chi_square() -> None:
    gained, lost = np.r_[np.ones(30), np.zeros(70)], np.r_[np.zeros(30), np.ones(10), np.zeros(60)]
    expected = stats.chi2.sf((30 - 10) ** 2 / (30 + 10), 1)
    assert mcnemar_clustered(gained, lost) == pytest.approx(expected)
    assert mcnemar_clustered(np.zeros(3), np.zeros(3)) == 1.0
