"""Before and after: two models on the same pairs, or on the same preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optipfair_engine.bias.profile import Profile
from optipfair_engine.bias.significance import (
    Array,
    Interval,
    bootstrap_means,
    holm,
    mcnemar,
    outcome,
    percentile_interval,
)
from optipfair_engine.bias.summary import OVERALL, pair_values
from optipfair_engine.errors import InvalidOptionError

#: Relative changes below this much are not worth the name.
DEFAULT_MARGIN = 0.05


def compare_profiles(
    before: Profile, after: Profile, *, margin: float = DEFAULT_MARGIN, seed: int = 0
) -> dict[str, Any]:
    """Changes of the mean difference, overall and by component, of the same pairs in two models.

    Each entry: ``before``, ``after``, ``delta`` and ``relative_change`` (delta over before) with intervals
    from a bootstrap paired by pair and clustered by template, and ``outcome`` (``better``: less difference,
    ``worse``, or ``inconclusive``) of the relative change against ``margin``. ``pairs`` has every pair's
    overall delta.

    Raises:
        InvalidOptionError: the models weren't given the same pairs.
    """
    prompts = [[(pair.first.text, pair.second.text) for pair in side.pairs] for side in (before, after)]
    if prompts[0] != prompts[1]:
        raise InvalidOptionError("Before and after must be measured on the same prompt pairs")
    names_before, values_before = pair_values(before)
    names_after, values_after = pair_values(after)
    shared = [name for name in names_before if name in names_after and "_layer_" not in name]
    first = values_before[:, [names_before.index(name) for name in shared]]
    second = values_after[:, [names_after.index(name) for name in shared]]
    templates = [pair.template for pair in before.pairs]
    entries = _entries(shared, first, second, templates, margin, seed)
    deltas = second[:, 0] - first[:, 0]
    return {
        "margin": margin,
        "overall": entries[OVERALL],
        "components": {name: entries[name] for name in shared[1:]},
        "pairs": [
            {"pair": f"pair_{pair.index + 1}", "before": float(b), "after": float(a), "delta": float(d)}
            for pair, b, a, d in zip(before.pairs, first[:, 0], second[:, 0], deltas, strict=True)
        ],
        "warnings": [
            "A smaller activation difference may mean less bias, or a model that reads less of its prompt: "
            "look at perplexity and at preferences too."
        ],
    }


def _entries(
    names: Sequence[str], first: Array, second: Array, templates: Sequence[str], margin: float, seed: int
) -> dict[str, dict[str, Any]]:
    drawn_first = bootstrap_means(first, templates, seed=seed)
    drawn_delta = bootstrap_means(second - first, templates, seed=seed)
    entries = {}
    for i, name in enumerate(names):
        before, after = float(first[:, i].mean()), float(second[:, i].mean())
        delta = percentile_interval(after - before, drawn_delta[:, i])
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = drawn_delta[:, i] / drawn_first[:, i]
        change = percentile_interval((after - before) / before, relative) if before > 0 else None
        entries[name] = {
            "before": before,
            "after": after,
            "delta": delta.as_dict(),
            "relative_change": change.as_dict() if change is not None else None,
            "outcome": outcome(change, margin) if change is not None else "inconclusive",
        }
    return entries


Preferences = npt.NDArray[np.bool_]


def compare_preferences(
    before: Preferences, after: Preferences, categories: Sequence[str], *, margin: float = 0.02, seed: int = 0
) -> dict[str, Any]:
    """Changes of which sentence is preferred, overall and by category, of the same items in two models.

    Args:
        before: whether the stereotype was preferred ``[items]``, by the first model.
        after: the same of the second one.
        categories: each item's category ``[items]``.
        margin: change of the distance from one half (as a share) that doesn't count.
        seed: of the bootstrap.

    Returns:
        Entries with shares, items that changed each way, McNemar's exact p, Holm's p across the categories,
        the change of |share − ½| with its bootstrap interval, and the three-state ``outcome``.

    Raises:
        InvalidOptionError: different numbers of items.
    """
    if not len(before) == len(after) == len(categories) or not len(before):
        raise InvalidOptionError("Before and after must have the same items, at least one")
    labels = np.asarray(categories)
    groups: Mapping[str, npt.NDArray[np.bool_]] = {
        OVERALL: np.ones(len(labels), dtype=bool),
        **{str(name): labels == name for name in sorted(set(categories))},
    }
    entries = {
        name: _preference_entry(before[rows], after[rows], margin, seed) for name, rows in groups.items()
    }
    named = [name for name in entries if name != OVERALL]
    for name, adjusted in zip(named, holm([entries[name]["p_value"] for name in named]), strict=True):
        entries[name]["p_holm"] = adjusted
        if adjusted > 0.05:
            entries[name]["outcome"] = "inconclusive"
    return {"margin": margin, "overall": entries.pop(OVERALL), "categories": entries}


def _preference_entry(before: Preferences, after: Preferences, margin: float, seed: int) -> dict[str, Any]:
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    items = [str(i) for i in range(len(before))]
    drawn = bootstrap_means(np.column_stack([before, after]).astype(np.float64), items, seed=seed)
    distances = np.abs(drawn - 0.5)
    shift = float(abs(after.mean() - 0.5) - abs(before.mean() - 0.5))
    change: Interval = percentile_interval(shift, distances[:, 1] - distances[:, 0])
    return {
        "items": len(before),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "to_stereotype": gained,
        "from_stereotype": lost,
        "p_value": mcnemar(gained, lost),
        "distance_from_half": change.as_dict(),
        "outcome": outcome(change, margin),
    }
