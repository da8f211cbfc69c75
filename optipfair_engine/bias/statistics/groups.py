"""The pairs of each suite and of each of its categories by themselves: differences, and what changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optipfair_engine.bias.prompts.suites import PairItem
from optipfair_engine.bias.results.changes import Change
from optipfair_engine.bias.results.differences import Difference
from optipfair_engine.bias.results.suites import PairSuiteResult
from optipfair_engine.bias.statistics.comparison import DEFAULT_MARGIN, compare_profiles
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.bias.statistics.summary import summarize


def pair_suite_results(
    pairs: Sequence[PairItem],
    controls: Sequence[PairItem],
    profile: Profile,
    control_profile: Profile | None,
    before: Profile | None = None,
    *,
    seed: int = 0,
    margin: float = DEFAULT_MARGIN,
) -> tuple[PairSuiteResult, ...]:
    """A result for each suite that the pairs are of.

    The noise floor of a category is that of all its suite's control pairs; intervals are clustered by
    template, and changes from ``before`` are paired by pair.

    Args:
        pairs: the pairs, in the order of the profile's.
        controls: the control pairs, in the order of theirs.
        profile: what the model made of the pairs.
        control_profile: what it made of the control pairs.
        before: what a baseline made of the pairs.
        seed: of the bootstrap.
        margin: relative change that doesn't count.
    """

    def difference(suite: str, rows: Sequence[int]) -> Difference:
        floor = None
        if control_profile is not None:
            chosen = _rows(controls, lambda pair: pair.suite == suite)
            floor = control_profile.only(chosen) if chosen else None
        return summarize(profile.only(rows), floor, seed=seed).overall

    def change(rows: Sequence[int]) -> Change | None:
        if before is None:
            return None
        return compare_profiles(before.only(rows), profile.only(rows), margin=margin, seed=seed).overall

    return tuple(
        _result(suite, pairs, lambda rows, suite=suite: difference(suite, rows), change)  # type: ignore[misc]
        for suite in dict.fromkeys(pair.suite for pair in pairs)
        if suite is not None
    )


def _result(
    suite: str,
    pairs: Sequence[PairItem],
    difference: Callable[[Sequence[int]], Difference],
    change: Callable[[Sequence[int]], Change | None],
) -> PairSuiteResult:
    everything = _rows(pairs, lambda pair: pair.suite == suite)
    names = dict.fromkeys(pairs[row].category for row in everything)
    groups = {
        name: _rows(pairs, lambda pair, name=name: (pair.suite, pair.category) == (suite, name))  # type: ignore[misc]
        for name in names
        if name is not None
    }
    changes = {name: change(rows) for name, rows in groups.items()}
    return PairSuiteResult(
        name=suite,
        pairs=len(everything),
        templates=len({pairs[row].template for row in everything}),
        overall=difference(everything),
        categories={name: difference(rows) for name, rows in groups.items()},
        change=change(everything),
        category_changes={name: found for name, found in changes.items() if found is not None},
    )


def _rows(pairs: Sequence[PairItem], wanted: Callable[[PairItem], bool]) -> list[int]:
    return [row for row, pair in enumerate(pairs) if wanted(pair)]
