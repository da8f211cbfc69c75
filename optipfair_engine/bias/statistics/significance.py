"""Statistics for few, clustered pairs: intervals, tests, their corrections, and what could be missed.

Pairs from one template are not independent, so templates are what is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from optipfair_engine.bias.results.changes import Outcome
from optipfair_engine.bias.results.intervals import Interval

Array = npt.NDArray[np.float64]

LEVEL: Final = 0.95
POWER: Final = 0.8
BOOTSTRAP_SAMPLES: Final = 2000
#: Below this many templates an interval rests on the shape of their distribution; a warning says so.
FEW_CLUSTERS: Final = 10


def cluster_sums(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sums ``[clusters, columns]`` and sizes ``[clusters]`` of ``values [pairs, columns]``."""
    _, numbers = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((int(numbers.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, numbers, values)
    return sums, np.bincount(numbers).astype(np.float64)


def bootstrap_means(
    values: Array, clusters: Sequence[str], *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Array:
    """Means ``[samples, columns]`` of ``values [pairs, columns]`` over clusters drawn with replacement.

    The cluster bootstrap (Davison & Hinkley 1997, §3.8): whole templates are drawn, all their pairs with
    them. The same seed and clusters draw the same templates, so two calls are paired. One cluster says
    nothing about how others would come out: no samples.
    """
    sums, sizes = cluster_sums(values, clusters)
    if len(sizes) < 2:
        return np.zeros((0, values.shape[1]))
    drawn = np.random.default_rng(seed).multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), size=samples
    )
    means: Array = (drawn @ sums) / (drawn @ sizes)[:, None]
    return means


def bootstrap_interval(
    value: float,
    replicates: Array,
    clusters: int,
    *,
    least: float = -math.inf,
    greatest: float = math.inf,
) -> Interval:
    """A 95 % interval from bootstrap replicates of ``clusters`` templates; no limits without any.

    The percentiles' distances from the estimate are widened by t(n−1)/z · √(n/(n−1)), the factor by which
    resampling n units understates a t-interval (Hesterberg 2015, §5: narrowness bias, and z for t). His
    expanded percentiles widen the quantile's level instead, which never leaves the range of the units: two
    of them would cover the truth half of the time.

    Args:
        value: the estimate.
        replicates: its bootstrap replicates ``[samples]``.
        clusters: independent units that were drawn from; the smaller number, of two samples.
        least: the least that the quantity can be.
        greatest: the most that it can be.
    """
    if clusters < 2 or not len(replicates) or not np.isfinite(replicates).all():
        return Interval(value, None, None)
    quantiles = stats.t.ppf((1 + LEVEL) / 2, clusters - 1) / stats.norm.ppf((1 + LEVEL) / 2)
    factor = quantiles * math.sqrt(clusters / (clusters - 1))
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    below, above = max(0.0, value - float(low)), max(0.0, float(high) - value)
    return Interval(
        value, float(max(value - factor * below, least)), float(min(value + factor * above, greatest))
    )


def relative_change(
    before: Array, after: Array, clusters: Sequence[str], *, seed: int = 0
) -> Interval | None:
    """After over before − 1, of means over pairs ``[pairs]``, paired; None: nothing to be relative to."""
    if not before.mean() > 0:
        return None
    drawn = bootstrap_means(np.column_stack([before, after]), clusters, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = drawn[:, 1] / drawn[:, 0] - 1
    value = float(after.mean() / before.mean() - 1)
    return bootstrap_interval(value, replicates, len(set(clusters)), least=-1)


def wilson(count: int, total: int) -> Interval:
    """A share with Wilson's score interval (Wilson 1927)."""
    if not total:
        return Interval(0.0, None, None)
    limits = stats.binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return Interval(count / total, float(limits.low), float(limits.high))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: are changes one way as likely as the other way (1 without any)?"""
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def mcnemar_clustered(gained: Array, lost: Array) -> float:
    """Two-sided p of McNemar's test where items of a cluster are not independent (Durkalski et al. 2003).

    ``gained`` and ``lost`` are each cluster's shares ``[clusters]`` of items that changed one way and the
    other; every cluster counts the same. χ² = (Σ d)² / Σ d² with one degree of freedom, d = gained − lost.
    """
    difference = gained - lost
    squares = float(np.square(difference).sum())
    return float(stats.chi2.sf(float(difference.sum()) ** 2 / squares, 1)) if squares else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (family-wise error), in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def benjamini_hochberg(p_values: Array) -> Array:
    """Adjusted p-values (false discovery rate; Benjamini & Hochberg 1995)."""
    adjusted: Array = stats.false_discovery_control(p_values, method="bh")
    return adjusted


def t_test(mean: Array, squares: Array, count: int) -> tuple[Array, Array]:
    """T and two-sided p that a mean is zero, from sums of squared deviations of ``count`` units.

    Where nothing varies, t is 0 (mean 0) or infinite.
    """
    error = np.sqrt(squares / (count - 1) / count)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, mean / error, np.where(mean == 0, 0.0, np.copysign(np.inf, mean)))
    p: Array = 2 * stats.t.sf(np.abs(t), count - 1)
    return t, p


def detectable_mean(values: Array, clusters: Sequence[str]) -> float | None:
    """The smallest mean difference that a t-test over templates finds at 5 % with 80 % power.

    ``values [pairs]``; None with fewer than three templates.
    """
    sums, sizes = cluster_sums(values[:, None], clusters)
    count = len(sizes)
    if count < 3:
        return None
    spread = float(np.std(sums[:, 0] / sizes, ddof=1))
    quantiles = stats.t.ppf((1 + LEVEL) / 2, count - 1) + stats.t.ppf(POWER, count - 1)
    return float(quantiles * spread / math.sqrt(count))


def detectable_share(total: int) -> float | None:
    """The smallest distance from a share of one half that a test finds at 5 % with 80 % power."""
    if not total:
        return None
    quantiles = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)
    return float(min(0.5, quantiles * math.sqrt(0.25 / total)))


def outcome(delta: Interval, margin: float = 0.0) -> Outcome:
    """What a change of an unwanted quantity amounts to: its whole interval is beyond the margin, or not."""
    if delta.low is None or delta.high is None:
        return "inconclusive"
    if delta.low > margin:
        return "worse"
    return "better" if delta.high < -margin else "inconclusive"
