"""How often the intervals of this project's own suite hold the truth, simulated by templates.

    python benchmarks/statistics/coverage.py [--trials N] [--suite optipfair]

A simulated model moves every scene of the suite by an amount of its own, which pairs and control pairs of
the scene have in common, every category by a factor, and every pair by chance; the amounts are log-normal, so
they are positive and skewed, as activations' differences are. The truth is what very many scenes would give.
Asked of each simulated model: the mean difference and the effect over noise, overall and of one category.
Exit code 1 if less than 93 % or more than 97 % of any interval's limits hold it.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np

from optipfair_engine.bias.prompts.own.items import own_items
from optipfair_engine.bias.statistics.significance import Array, bootstrap_means
from optipfair_engine.bias.statistics.summary import Sample, noise_of

#: Standard deviations of the logarithms: of scenes, and of single pairs.
SCENES, PAIRS = 0.25, 0.25
#: How many times the control pairs' difference the categories' are.
FACTORS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
LEAST, MOST = 0.93, 0.97


def main() -> int:
    """Print how often each interval holds its truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--suite", default="optipfair")
    options = parser.parse_args()
    items = own_items(options.suite)
    scenes = sorted({pair.template for pair in items.pairs})
    categories = sorted({str(pair.category) for pair in items.pairs})
    rows = np.array([scenes.index(pair.template) for pair in items.pairs])
    factors = np.array([FACTORS[categories.index(str(pair.category))] for pair in items.pairs])
    held: dict[str, int] = {}
    for trial in range(options.trials):
        chance = np.random.default_rng(trial)
        moved = np.exp(chance.normal(0, SCENES, len(scenes)))
        pairs = factors * moved[rows] * np.exp(chance.normal(0, PAIRS, len(rows)))
        controls = moved * np.exp(chance.normal(0, PAIRS, len(scenes)))
        first = factors == FACTORS[-1]
        for name, values, chosen, truth in (
            ("overall", pairs, rows, float(np.mean(FACTORS))),
            ("one category", pairs[first], rows[first], FACTORS[-1]),
        ):
            for what, covered in covers(
                values, [scenes[row] for row in chosen], controls, scenes, truth
            ).items():
                held[f"{what}, {name}"] = held.get(f"{what}, {name}", 0) + covered
    shares = {name: count / options.trials for name, count in held.items()}
    print(f"{options.suite}: {len(rows)} pairs of {len(scenes)} scenes; {options.trials} simulated models")
    for name, share in shares.items():
        print(f"  {name:34s} {share:.1%} of the 95 % intervals hold the truth")
    return int(not all(LEAST <= share <= MOST for share in shares.values()))


def covers(
    values: Array, templates: list[str], controls: Array, scenes: list[str], factor: float
) -> dict[str, bool]:
    """Whether the interval of the mean, and that of the effect over noise, hold the truth."""
    spread = math.exp((SCENES**2 + PAIRS**2) / 2)
    found, floor = (
        Sample(["overall"], column[:, None], bootstrap_means(column[:, None], names), list(names))
        for column, names in ((values, templates), (controls, scenes))
    )
    effect = noise_of(found, 0, floor, 0).effect
    truths = {"mean difference": (found.interval(0), factor * spread), "effect over noise": (effect, factor)}
    return {
        name: interval is not None and bool(interval.low <= truth <= interval.high)
        for name, (interval, truth) in truths.items()
    }


if __name__ == "__main__":
    sys.exit(main())
