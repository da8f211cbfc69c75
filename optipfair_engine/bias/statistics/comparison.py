"""Before and after: two models on the same pairs, or on the same preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.activations.components import LAYER_OUTPUT
from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.results.changes import (
    Change,
    Compared,
    Language,
    PairDelta,
    PreferenceChange,
    PreferenceComparison,
    ProfileComparison,
)
from optipfair_engine.bias.results.scores import BehaviourResult
from optipfair_engine.bias.results.suites import NamedScores
from optipfair_engine.bias.statistics.metrics import FROM_FIRST_DIFFERENCE
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.bias.statistics.significance import (
    Array,
    bootstrap_interval,
    bootstrap_means,
    cluster_sums,
    holm,
    mcnemar,
    mcnemar_clustered,
    outcome,
    relative_change,
)
from optipfair_engine.bias.statistics.summary import OVERALL
from optipfair_engine.errors import InvalidOptionError

#: Relative changes below this much are not worth the name.
DEFAULT_MARGIN: Final = 0.05
READING_WARNING: Final = (
    "A smaller activation difference may mean less bias, or a model that reads less of its prompt: "
    "look at perplexity and at preferences too."
)


@dataclass(frozen=True)
class _Basis:
    """What of two models can be compared: ``shared`` components of ``before`` and ``after``."""

    before: Profile
    after: Profile
    shared: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def values(self, side: Profile, component: str | None = None) -> Array:
        """Mean difference ``[pairs]`` of a shared component, or of all of them (a tensor counting once)."""
        groups = side.components()
        if component is not None:
            return side.mean_of(groups[component], FROM_FIRST_DIFFERENCE)
        twice = self.before.aliases.keys() & self.after.aliases.keys()
        keys = [key for name in self.shared for key in groups[name] if key not in twice]
        return side.mean_of(keys, FROM_FIRST_DIFFERENCE)

    def compared(self) -> Compared:
        """The components and the layers of both models that entered."""
        layers = [
            tuple(sorted({_layer(key) for name in self.shared for key in side.components()[name]}))
            for side in (self.before, self.after)
        ]
        return Compared(self.shared, *layers)


def compare_profiles(
    before: Profile, after: Profile, *, margin: float = DEFAULT_MARGIN, seed: int = 0
) -> ProfileComparison:
    """Changes of the mean difference, overall and by component, of the same pairs in two models.

    Only what has the same size in both is compared: a mean over other neurons is another quantity, and
    cutting neurons that do nothing would change it. Models of as many layers: the components whose size is
    the same in every layer. Others: what leaves the last layer, since layers have no counterpart.
    ``compared`` names the components and layers that entered ``overall``; ``warnings`` the rest.

    Each entry: ``before``, ``after``, ``delta`` and ``relative_change`` (delta over before) with intervals
    from a bootstrap paired by pair and clustered by template, and ``outcome`` (``better``: less difference,
    ``worse``, or ``inconclusive``) of the relative change against ``margin``. What can't be compared has the
    outcome ``not_comparable`` and neither delta nor change. ``pairs`` has every pair's overall delta.

    Raises:
        InvalidOptionError: the models weren't given the same pairs.
    """
    prompts = [[(pair.first.text, pair.second.text) for pair in side.pairs] for side in (before, after)]
    if prompts[0] != prompts[1]:
        raise InvalidOptionError("Before and after must be measured on the same prompt pairs")
    basis = _basis(before, after)
    entries = _entries(basis, margin, seed)
    overall = entries.pop(OVERALL, None)
    rest = [name for name in {**before.components(), **after.components()} if name not in entries]
    return ProfileComparison(
        margin=margin,
        compared=basis.compared(),
        overall=overall or _unjudged(None, None),
        components={**entries, **{name: _not_comparable(before, after, name) for name in rest}},
        pairs=tuple(_pair_deltas(basis)),
        warnings=(*basis.warnings, READING_WARNING),
    )


def _unjudged(before: float | None, after: float | None) -> Change:
    """What has another size, or another place, in the two models."""
    return Change(before, after, None, None, "not_comparable")


def _not_comparable(before: Profile, after: Profile, component: str) -> Change:
    """An entry with both models' means, and no judgement on them."""
    keys = [(side, side.components().get(component, [])) for side in (before, after)]
    means = [
        float(side.mean_of(found, FROM_FIRST_DIFFERENCE).mean()) if found else None for side, found in keys
    ]
    return _unjudged(*means)


def _basis(before: Profile, after: Profile) -> _Basis:
    layers = [{_layer(key) for key in side.keys} for side in (before, after)]
    shared = _same_size(before, after) if layers[0] == layers[1] else ()
    if shared:
        rest = [name for name in {**before.components(), **after.components()} if name not in shared]
        found = (
            f"{', '.join(rest)}: of other sizes in the two models, so not compared; overall is over "
            f"{', '.join(shared)}."
        )
        return _Basis(before, after, shared, (found,) if rest else ())
    first, second = before.last_output, after.last_output
    if first is None or second is None or list(first.sizes.values()) != list(second.sizes.values()):
        return _Basis(before, after, (), ("Nothing has the same size in both models: nothing is compared.",))
    found = (
        f"The models have {len(layers[0])} and {len(layers[1])} layers, which have no counterparts: overall "
        "compares what leaves the last layer."
    )
    return _Basis(first, second, (LAYER_OUTPUT,), (found,))


def _same_size(before: Profile, after: Profile) -> tuple[str, ...]:
    """The components that stand in the same layers, with the same sizes."""
    found = after.components()
    return tuple(
        name
        for name, keys in before.components().items()
        if keys == found.get(name) and all(before.sizes[key] == after.sizes[key] for key in keys)
    )


def _layer(key: str) -> int:
    return (split_key(key) or (key, 0))[1]


def _pair_deltas(basis: _Basis) -> list[PairDelta]:
    if not basis.shared:
        return []
    first, second = basis.values(basis.before), basis.values(basis.after)
    return [
        PairDelta(f"pair_{pair.index + 1}", float(b), float(a), float(a - b))
        for pair, b, a in zip(basis.before.pairs, first, second, strict=True)
    ]


def _entries(basis: _Basis, margin: float, seed: int) -> dict[str, Change]:
    """Overall and every shared component; nothing, if none is shared."""
    templates = [pair.template for pair in basis.before.pairs]
    entries = {}
    for name, component in ((OVERALL, None), *((name, name) for name in basis.shared)):
        if not basis.shared:
            break
        first, second = basis.values(basis.before, component), basis.values(basis.after, component)
        entries[name] = paired_change(first, second, templates, margin, seed)
    return entries


def paired_change(first: Array, second: Array, templates: Sequence[str], margin: float, seed: int) -> Change:
    """The change from ``first`` to ``second`` ``[pairs]``, judged relative to ``first``."""
    deltas = second - first
    drawn = bootstrap_means(deltas[:, None], templates, seed=seed)[:, 0]
    change = relative_change(first, second, templates, seed=seed)
    return Change(
        before=float(first.mean()),
        after=float(second.mean()),
        delta=bootstrap_interval(float(deltas.mean()), drawn, len(set(templates))),
        relative_change=change,
        outcome=outcome(change, margin) if change is not None else "inconclusive",
    )


Flags = npt.NDArray[np.bool_]


def compare_behaviour(
    before: BehaviourResult[NamedScores],
    after: BehaviourResult[NamedScores],
    *,
    margin: float = 0.02,
    seed: int = 0,
) -> PreferenceComparison:
    """:func:`compare_preferences` of a suite's results, with what each model knows of the language beside.

    ``language`` has both models' perplexity (CrowS-Pairs) or lms (StereoSet, whose items are clustered by
    target), and ``warnings`` say it too: a model that knows less prefers less, and that is no merit.
    """
    first, second = before.preferences, after.preferences
    result = compare_preferences(
        first.stereotype,
        second.stereotype,
        first.categories,
        clusters=first.clusters,
        margin=margin,
        seed=seed,
    )
    name = after.scores.language[0]
    known = [side.scores.language[1] for side in (before, after)]
    texts = ["unknown" if value is None else f"{value:.4g}" for value in known]
    warning = (
        "A model that knows less of its language has fewer preferences, and moves towards 50 % without being "
        f"any fairer: {name} {texts[0]} before, {texts[1]} after."
    )
    return replace(result, language=Language(name, *known), warnings=(warning,))


def compare_preferences(
    before: Flags,
    after: Flags,
    categories: Sequence[str],
    *,
    clusters: Sequence[str] | None = None,
    margin: float = 0.02,
    seed: int = 0,
) -> PreferenceComparison:
    """Changes of which sentence is preferred, overall and by category, of the same items in two models.

    Args:
        before: whether the stereotype was preferred ``[items]``, by the first model.
        after: the same of the second one.
        categories: each item's category ``[items]``.
        clusters: each item's cluster ``[items]`` (StereoSet's targets): shares are then means over clusters,
            which are what is resampled. By default items are independent.
        margin: change of the distance from one half (as a share) that doesn't count.
        seed: of the bootstrap.

    Returns:
        Entries with shares, items that changed each way, McNemar's exact p (of clusters: Durkalski's), Holm's
        p across the categories, the change of |share − ½| with its bootstrap interval, and the three-state
        ``outcome``.

    Raises:
        InvalidOptionError: different numbers of items.
    """
    names = np.asarray(range(len(categories)) if clusters is None else clusters).astype(str)
    if not len(before) == len(after) == len(categories) == len(names) or not len(before):
        raise InvalidOptionError("Before and after must have the same items, at least one")
    labels = np.asarray(categories)
    groups: Mapping[str, npt.NDArray[np.bool_]] = {
        OVERALL: np.ones(len(labels), dtype=bool),
        **{str(name): labels == name for name in sorted(set(categories))},
    }
    entries = {
        name: _preference_entry(before[rows], after[rows], names[rows].tolist(), margin, seed)
        for name, rows in groups.items()
    }
    named = [name for name in entries if name != OVERALL]
    for name, adjusted in zip(named, holm([entries[name].p_value for name in named]), strict=True):
        judged = entries[name].outcome if adjusted <= 0.05 else "inconclusive"
        entries[name] = replace(entries[name], p_holm=adjusted, outcome=judged)
    return PreferenceComparison(margin, entries.pop(OVERALL), entries)


def _preference_entry(
    before: Flags, after: Flags, clusters: list[str], margin: float, seed: int
) -> PreferenceChange:
    gained, lost = after & ~before, before & ~after
    sums, sizes = cluster_sums(np.column_stack([before, after, gained, lost]).astype(np.float64), clusters)
    shares = sums / sizes[:, None]
    alone = len(sizes) == len(before)
    drawn = bootstrap_means(shares[:, :2], [str(i) for i in range(len(sizes))], seed=seed)
    first, second = (float(share) for share in shares[:, :2].mean(axis=0))
    distances = np.abs(drawn - 0.5)
    shift = abs(second - 0.5) - abs(first - 0.5)
    change = bootstrap_interval(shift, distances[:, 1] - distances[:, 0], len(sizes))
    counts = int(gained.sum()), int(lost.sum())
    return PreferenceChange(
        items=len(before),
        clusters=len(sizes),
        before=first,
        after=second,
        to_stereotype=counts[0],
        from_stereotype=counts[1],
        p_value=mcnemar(*counts) if alone else mcnemar_clustered(shares[:, 2], shares[:, 3]),
        distance_from_half=change,
        outcome=outcome(change, margin),
    )
