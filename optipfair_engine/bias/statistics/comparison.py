"""Before and after: two models on the same pairs, or on the same preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.activations.components import LAYER_OUTPUT, split_key
from optipfair_engine.bias.behaviour.preferences import BehaviourResult
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
#: The outcome of what has another size, or another place, in the two models.
NOT_COMPARABLE: Final = "not_comparable"
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

    def as_dict(self) -> dict[str, Any]:
        """The components and the layers of both models that entered, JSON-ready."""
        layers = [
            sorted({_layer(key) for name in self.shared for key in side.components()[name]})
            for side in (self.before, self.after)
        ]
        return {"components": list(self.shared), "layers_before": layers[0], "layers_after": layers[1]}


def compare_profiles(
    before: Profile, after: Profile, *, margin: float = DEFAULT_MARGIN, seed: int = 0
) -> dict[str, Any]:
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
    return {
        "margin": margin,
        "compared": basis.as_dict(),
        "overall": overall or {"before": None, "after": None, **_UNJUDGED},
        "components": {**entries, **{name: _not_comparable(before, after, name) for name in rest}},
        "pairs": _pair_deltas(basis),
        "warnings": [*basis.warnings, READING_WARNING],
    }


_UNJUDGED: Final = {"delta": None, "relative_change": None, "outcome": NOT_COMPARABLE}


def _not_comparable(before: Profile, after: Profile, component: str) -> dict[str, Any]:
    """An entry with both models' means, and no judgement on them."""
    keys = [(side, side.components().get(component, [])) for side in (before, after)]
    means = [
        float(side.mean_of(found, FROM_FIRST_DIFFERENCE).mean()) if found else None for side, found in keys
    ]
    return {"before": means[0], "after": means[1], **_UNJUDGED}


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


def _pair_deltas(basis: _Basis) -> list[dict[str, Any]]:
    if not basis.shared:
        return []
    first, second = basis.values(basis.before), basis.values(basis.after)
    return [
        {"pair": f"pair_{pair.index + 1}", "before": float(b), "after": float(a), "delta": float(a - b)}
        for pair, b, a in zip(basis.before.pairs, first, second, strict=True)
    ]


def _entries(basis: _Basis, margin: float, seed: int) -> dict[str, dict[str, Any]]:
    """Overall and every shared component; nothing, if none is shared."""
    templates = [pair.template for pair in basis.before.pairs]
    entries = {}
    for name, component in ((OVERALL, None), *((name, name) for name in basis.shared)):
        if not basis.shared:
            break
        first, second = basis.values(basis.before, component), basis.values(basis.after, component)
        entries[name] = _entry(first, second, templates, margin, seed)
    return entries


def _entry(first: Array, second: Array, templates: Sequence[str], margin: float, seed: int) -> dict[str, Any]:
    """The change of values ``[pairs]``."""
    deltas = second - first
    drawn = bootstrap_means(deltas[:, None], templates, seed=seed)[:, 0]
    change = relative_change(first, second, templates, seed=seed)
    return {
        "before": float(first.mean()),
        "after": float(second.mean()),
        "delta": bootstrap_interval(float(deltas.mean()), drawn, len(set(templates))).as_dict(),
        "relative_change": change.as_dict() if change is not None else None,
        "outcome": outcome(change, margin) if change is not None else "inconclusive",
    }


Preferences = npt.NDArray[np.bool_]


def compare_behaviour(
    before: BehaviourResult, after: BehaviourResult, *, margin: float = 0.02, seed: int = 0
) -> dict[str, Any]:
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
    name = "perplexity" if before.report["suite"] == "crows_pairs" else "lms"
    known = [
        side.report["perplexity"] if name == "perplexity" else side.report["overall"]["lms"]
        for side in (before, after)
    ]
    texts = ["unknown" if value is None else f"{value:.4g}" for value in known]
    warning = (
        "A model that knows less of its language has fewer preferences, and moves towards 50 % without being "
        f"any fairer: {name} {texts[0]} before, {texts[1]} after."
    )
    language = {"measure": name, "before": known[0], "after": known[1]}
    return {**result, "language": language, "warnings": [warning]}


def compare_preferences(
    before: Preferences,
    after: Preferences,
    categories: Sequence[str],
    *,
    clusters: Sequence[str] | None = None,
    margin: float = 0.02,
    seed: int = 0,
) -> dict[str, Any]:
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
    for name, adjusted in zip(named, holm([entries[name]["p_value"] for name in named]), strict=True):
        entries[name]["p_holm"] = adjusted
        if adjusted > 0.05:
            entries[name]["outcome"] = "inconclusive"
    return {"margin": margin, "overall": entries.pop(OVERALL), "categories": entries}


def _preference_entry(
    before: Preferences, after: Preferences, clusters: list[str], margin: float, seed: int
) -> dict[str, Any]:
    gained, lost = after & ~before, before & ~after
    sums, sizes = cluster_sums(np.column_stack([before, after, gained, lost]).astype(np.float64), clusters)
    shares = sums / sizes[:, None]
    alone = len(sizes) == len(before)
    drawn = bootstrap_means(shares[:, :2], [str(i) for i in range(len(sizes))], seed=seed)
    first, second = (float(share) for share in shares[:, :2].mean(axis=0))
    distances = np.abs(drawn - 0.5)
    shift = abs(second - 0.5) - abs(first - 0.5)
    change = bootstrap_interval(shift, distances[:, 1] - distances[:, 0], len(sizes))
    return {
        "items": len(before),
        "clusters": len(sizes),
        "before": first,
        "after": second,
        "to_stereotype": int(gained.sum()),
        "from_stereotype": int(lost.sum()),
        "p_value": (
            mcnemar(int(gained.sum()), int(lost.sum()))
            if alone
            else mcnemar_clustered(shares[:, 2], shares[:, 3])
        ),
        "distance_from_half": change.as_dict(),
        "outcome": outcome(change, margin),
    }
