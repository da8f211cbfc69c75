"""What all pairs together say, per component and layer: means with intervals, beside the noise floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.results.differences import (
    ActivationSummary,
    AlignmentSummary,
    Difference,
    Noise,
)
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.statistics.metrics import ACTIVATION_WARNING, FROM_FIRST_DIFFERENCE
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.bias.statistics.significance import (
    FEW_CLUSTERS,
    Array,
    bootstrap_interval,
    bootstrap_means,
    detectable_mean,
)

OVERALL: Final = "overall"
LANGUAGE_WARNING: Final = (
    "The result speaks of these prompts, in their language and wording, and of this model only; other "
    "wordings, languages and attributes may come out differently."
)


def pair_names(profile: Profile) -> list[str]:
    """The names of ``pair_values``'s columns: ``overall``, each component, each layer key."""
    return [OVERALL, *profile.components(), *profile.keys]


def pair_values(profile: Profile, scope: int = FROM_FIRST_DIFFERENCE) -> tuple[list[str], Array]:
    """Names and values ``[pairs, names]``: ``overall``, each component, each layer key.

    A component's value is the mean over its layers, every layer counting the same; a tensor with two names
    (``mlp_output`` and ``down_proj`` in most families) counts once overall.
    """
    counted = [key for key in profile.keys if key not in profile.aliases]
    groups = [counted, *profile.components().values()]
    columns = [profile.mean_of(keys, scope) for keys in groups]
    return pair_names(profile), np.column_stack([*columns, profile.means(scope)])


def summarize(profile: Profile, controls: Profile | None = None, *, seed: int = 0) -> ActivationSummary:
    """Means over pairs of the mean difference from the first difference on, with intervals.

    Each entry has its mean (bootstrap clustered by template), ``minimum_detectable`` (the least distance from
    a reference value that this many templates would show with 80 % power), and, with control pairs, their
    mean as noise floor, the effect (mean over noise floor) and whether its whole interval is above 1. Pairs
    and control pairs without any position to compare are left out; without any other pair there is no mean.
    """
    found = Sample.of(profile, seed)
    floor = _floor(controls, found, seed)
    names = pair_names(profile)
    entries = {name: _entry(found, floor, name) for name in names}
    templates = [pair.template for pair in profile.pairs]
    return ActivationSummary(
        pairs=len(profile.pairs),
        templates=len(set(templates)),
        control_pairs=len(controls.pairs) if controls is not None else 0,
        overall=entries[OVERALL],
        components={name: entries[name] for name in names[1:] if split_key(name) is None},
        layers={name: entries[name] for name in names if split_key(name) is not None},
        alignment=alignment_summary(profile),
        warnings=(
            *warnings_for(templates, controls),
            *_nothing_compared(profile, "pair", "so the means leave {} out"),
            *_nothing_compared(controls, "control pair", "so the noise floor leaves {} out"),
        ),
    )


@dataclass(frozen=True)
class Sample:
    """Values ``[pairs, names]``, replicates of their means ``[samples, names]``, and the pairs' templates."""

    names: list[str]
    values: Array
    drawn: Array
    templates: list[str]

    @classmethod
    def of(cls, profile: Profile, seed: int) -> Sample | None:
        """Of the pairs that have a position from their first difference on; None, if no pair has."""
        heard = np.flatnonzero(profile.has_signal(FROM_FIRST_DIFFERENCE))
        if not len(heard):
            return None
        names, values = pair_values(profile)
        values, templates = values[heard], [profile.pairs[row].template for row in heard]
        return cls(names, values, bootstrap_means(values, templates, seed=seed), templates)

    @property
    def clusters(self) -> int:
        """How many templates there are."""
        return len(set(self.templates))

    def mean(self, column: int) -> float:
        """Over all pairs."""
        return float(self.values[:, column].mean())

    def interval(self, column: int) -> Interval:
        """The mean with its interval."""
        return bootstrap_interval(self.mean(column), self.drawn[:, column], self.clusters, least=0)


def _floor(controls: Profile | None, found: Sample | None, seed: int) -> Sample | None:
    """The control pairs' sample.

    A template that moves a model much does so with control words too. So controls that come from the pairs'
    own templates are drawn together with them, and others independently.
    """
    floor = Sample.of(controls, seed) if controls is not None else None
    if controls is None or found is None or floor is None:
        return floor
    return floor if set(floor.templates) == set(found.templates) else Sample.of(controls, seed + 1)


def _entry(pairs: Sample | None, controls: Sample | None, name: str) -> Difference:
    if pairs is None:
        return Difference(None, None)
    column = pairs.names.index(name)
    detectable = detectable_mean(pairs.values[:, column], pairs.templates)
    if controls is None or name not in controls.names:
        return Difference(pairs.interval(column), detectable)
    noise = noise_of(pairs, column, controls, controls.names.index(name))
    return Difference(pairs.interval(column), detectable, noise)


def noise_of(pairs: Sample, column: int, controls: Sample, control_column: int) -> Noise:
    """How many times the controls' mean the pairs' is."""
    floor, drawn = controls.interval(control_column), controls.drawn[:, control_column]
    if floor.value <= 0 or (drawn <= 0).any():
        return Noise(floor, None, None)
    clusters = min(pairs.clusters, controls.clusters)
    ratios = pairs.drawn[:, column] / drawn if clusters > 1 else np.zeros(0)
    effect = bootstrap_interval(pairs.mean(column) / floor.value, ratios, clusters, least=0)
    return Noise(floor, effect, effect.low > 1 if effect.low is not None else None)


def alignment_summary(profile: Profile) -> AlignmentSummary:
    """How much of the prompts could be compared."""
    shares = [pair.alignment.share_aligned for pair in profile.pairs]
    return AlignmentSummary(float(np.mean(shares)), float(np.min(shares)), sum(share < 1 for share in shares))


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


def _nothing_compared(profile: Profile | None, noun: str, consequence: str) -> list[str]:
    """Warnings of the pairs that have no position to compare."""
    if profile is None:
        return []
    silent = [
        pair
        for pair, signal in zip(profile.pairs, profile.has_signal(FROM_FIRST_DIFFERENCE), strict=True)
        if not signal
    ]
    equal = sum(pair.first.ids == pair.second.ids for pair in silent)
    reasons = [
        (
            len(silent) - equal,
            "with tokens added at the end of one prompt only: from there on nothing can be",
        ),
        (equal, "whose two prompts are the same tokens to this model's tokenizer: nothing can be"),
    ]
    return [
        f"{_number(count, noun)} {reason} compared, {consequence.format('it' if count == 1 else 'them')}."
        for count, reason in reasons
        if count
    ]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
