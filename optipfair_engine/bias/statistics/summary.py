"""What all pairs together say, per component and layer: means with intervals, beside the noise floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from optipfair_engine.bias.activations.components import split_key
from optipfair_engine.bias.statistics.metrics import ACTIVATION_WARNING, FROM_FIRST_DIFFERENCE
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.bias.statistics.significance import (
    FEW_CLUSTERS,
    Array,
    Interval,
    bootstrap_interval,
    bootstrap_means,
    detectable_mean,
)

OVERALL: Final = "overall"
LANGUAGE_WARNING: Final = (
    "The result speaks of these prompts, in their language and wording, and of this model only; other "
    "wordings, languages and attributes may come out differently."
)


def pair_values(profile: Profile, scope: int = FROM_FIRST_DIFFERENCE) -> tuple[list[str], Array]:
    """Names and values ``[pairs, names]``: ``overall``, each component, each layer key.

    A component's value is the mean over its layers, every layer counting the same; a tensor with two names
    (``mlp_output`` and ``down_proj`` in most families) counts once overall.
    """
    counted = [key for key in profile.keys if key not in profile.aliases]
    groups = {OVERALL: counted, **profile.components()}
    columns = [profile.mean_of(keys, scope) for keys in groups.values()]
    return [*groups, *profile.keys], np.column_stack([*columns, profile.means(scope)])


def summarize(profile: Profile, controls: Profile | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Means over pairs of the mean difference from the first difference on, with intervals.

    Each entry has ``value, low, high`` (bootstrap clustered by template), ``minimum_detectable`` (the least
    distance from a reference value that this many templates would show with 80 % power), and, with control
    pairs, ``noise_floor`` (their mean), ``effect`` (mean over noise floor, with its interval) and
    ``above_noise`` (whether its whole interval is above 1). Pairs without any difference between their tokens
    count as zero.
    """
    names, values = pair_values(profile)
    templates = [pair.template for pair in profile.pairs]
    found = _Sample.of(profile, seed)
    # another stream of random numbers: the controls' templates are drawn independently of the pairs'
    heard = _heard(controls) if controls is not None else []
    floor = _Sample.of(controls, seed + 1, heard) if controls is not None and any(heard) else None
    entries = {}
    for column, name in enumerate(names):
        entry: dict[str, Any] = found.interval(column).as_dict()
        entry["minimum_detectable"] = detectable_mean(values[:, column], templates)
        if floor is not None and name in floor.names:
            entry.update(_against(found, column, floor, floor.names.index(name)))
        entries[name] = entry
    components = [name for name in names[1:] if split_key(name) is None]
    return {
        "scope": "from_first_difference",
        "pairs": len(profile.pairs),
        "templates": found.templates,
        "control_pairs": len(controls.pairs) if controls is not None else 0,
        "confidence": 0.95,
        "overall": entries[OVERALL],
        "components": {name: entries[name] for name in components},
        "layers": {name: entries[name] for name in names if split_key(name) is not None},
        "alignment": alignment_summary(profile),
        "warnings": [
            *warnings_for(templates, controls),
            *_nothing_compared(_heard(profile), "pair", "which counts as no difference"),
            *_nothing_compared(heard, "control pair", "so the noise floor leaves it out"),
        ],
    }


@dataclass(frozen=True)
class _Sample:
    """Means ``[names]`` over pairs, their replicates ``[samples, names]``, and the number of templates."""

    names: list[str]
    means: Array
    drawn: Array
    templates: int

    @classmethod
    def of(cls, profile: Profile, seed: int, counted: Sequence[bool] | None = None) -> _Sample:
        """Of all pairs, or of those that are ``counted``."""
        names, values = pair_values(profile)
        rows = [row for row in range(len(values)) if counted is None or counted[row]]
        values, templates = values[rows], [profile.pairs[row].template for row in rows]
        drawn = bootstrap_means(values, templates, seed=seed)
        return cls(names, values.mean(axis=0), drawn, len(set(templates)))

    def interval(self, column: int) -> Interval:
        return bootstrap_interval(float(self.means[column]), self.drawn[:, column], self.templates, least=0)


def _against(pairs: _Sample, column: int, controls: _Sample, control_column: int) -> dict[str, Any]:
    """How many times the controls' mean the pairs' is."""
    floor, drawn = float(controls.means[control_column]), controls.drawn[:, control_column]
    limits = controls.interval(control_column)
    found = {"noise_floor": floor, "noise_floor_low": limits.low, "noise_floor_high": limits.high}
    if floor <= 0 or (drawn <= 0).any():
        return {**found, "effect": None, "above_noise": None}
    templates = min(pairs.templates, controls.templates)
    ratios = pairs.drawn[:, column] / drawn if templates > 1 else np.zeros(0)
    effect = bootstrap_interval(float(pairs.means[column]) / floor, ratios, templates, least=0)
    above = effect.low > 1 if effect.low is not None else None
    return {**found, "effect": effect.as_dict(), "above_noise": above}


def alignment_summary(profile: Profile) -> dict[str, Any]:
    """How much of the prompts could be compared."""
    shares = [pair.alignment.share_aligned for pair in profile.pairs]
    return {
        "mean_share_aligned": float(np.mean(shares)),
        "least_share_aligned": float(np.min(shares)),
        "pairs_with_unaligned_tokens": sum(share < 1 for share in shares),
    }


def warnings_for(templates: Sequence[str], controls: Profile | None) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = [ACTIVATION_WARNING, LANGUAGE_WARNING]
    count = len(set(templates))
    if count == 1:
        found.append(
            f"{_number(len(templates), 'pair')} from one template: nothing says how other templates would "
            "come out, so there are no intervals and no outcome."
        )
    elif count < FEW_CLUSTERS:
        found.append(
            f"{_number(len(templates), 'pair')} from {count} templates: with fewer than {FEW_CLUSTERS} "
            "templates the intervals are wide (widened for the number of templates), and only hold if no "
            "template is far from all others."
        )
    if controls is None:
        found.append("No control pairs: there is no noise floor to judge the size of the differences by.")
    elif len({pair.template for pair in controls.pairs}) == 1:
        found.append("Control pairs from one template: noise floor and effect have no interval.")
    return found


def _heard(profile: Profile) -> list[bool]:
    """Of each pair whether it has what can be compared, or no difference; not: words added at one's end."""
    signals = profile.has_signal(FROM_FIRST_DIFFERENCE)
    return [
        bool(signal) or pair.first.ids == pair.second.ids
        for pair, signal in zip(profile.pairs, signals, strict=True)
    ]


def _nothing_compared(heard: Sequence[bool], noun: str, consequence: str) -> list[str]:
    """A warning of the pairs that were not heard."""
    silent = heard.count(False)
    if not silent:
        return []
    return [
        f"{_number(silent, noun)} with tokens added at the end of one prompt only: from there on "
        f"nothing can be compared, {consequence}."
    ]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
