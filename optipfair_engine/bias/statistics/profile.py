"""Moments of every pair's differences, and the guide's metrics built from them on demand.

A pair keeps about 80 bytes a layer and component. The guide's nested dictionaries are ten times that, so they
are built when they are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.activations.stream import BatchUnits, EncodedPair
from optipfair_engine.bias.statistics.metrics import (
    COUNT,
    FROM_FIRST_DIFFERENCE,
    GREATEST,
    LEAST,
    MEAN,
    SQUARES,
    Array,
    build_metrics,
)
from optipfair_engine.notebooks import MOST_ROWS, table


class ProfileConsumer:
    """Collects moments ``[sites, scopes, 5]`` for every pair of the stream."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self.aliases: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self._rows = {key: row for row, key in enumerate(self.keys)}
        self._units: BatchUnits | None = None
        self._differences: Tensor = torch.zeros(0)
        self._done: list[tuple[EncodedPair, Array]] = []

    def begin(self, units: BatchUnits) -> None:
        """Make room for a batch: one row a site, one column a unit."""
        self._units = units
        self._differences = torch.zeros(len(self.keys), int(units.offsets[-1]), dtype=torch.float64)

    def take(self, key: str, first: Tensor, second: Tensor, alias: str | None) -> None:
        """Mean over features of |second − first|, one a unit."""
        row = self._rows.get(key)
        if row is None:
            return
        self.sizes[key] = first.shape[-1]
        if alias is not None and alias in self._rows:
            self.aliases[key] = alias
            self._differences[row] = self._differences[self._rows[alias]]
        elif first.numel():
            self._differences[row] = (second - first).abs_().mean(dim=1)

    def end(self) -> None:
        """Summarise each pair of the batch."""
        if self._units is None:
            return
        values = self._differences.numpy()
        offsets, starts = self._units.offsets, self._units.starts
        for number, pair in enumerate(self._units.pairs):
            stop = offsets[number + 1]
            scopes = [_moments(values[:, start:stop]) for start in (offsets[number], starts[number])]
            self._done.append((pair, np.stack(scopes, axis=1)))
        self._units, self._differences = None, torch.zeros(0)

    def result(self) -> Profile:
        """Everything gathered, in the order of the pairs' numbers."""
        self._done.sort(key=lambda item: item[0].index)
        pairs = tuple(pair for pair, _ in self._done)
        moments = np.stack([moments for _, moments in self._done])
        return Profile(self.keys, dict(self.aliases), pairs, moments, dict(self.sizes))


def _moments(values: Array) -> Array:
    """Moments ``[sites, 5]`` of ``values [sites, units]``."""
    result = np.zeros((len(values), 5))
    if values.shape[1]:
        mean = values.mean(axis=1)
        result[:, COUNT] = values.shape[1]
        result[:, MEAN] = mean
        result[:, SQUARES] = np.square(values - mean[:, None]).sum(axis=1)
        result[:, LEAST], result[:, GREATEST] = values.min(axis=1), values.max(axis=1)
    return result


class Profile:
    """Moments of all pairs: ``moments [pairs, sites, scopes, 5]``.

    ``sizes``: features of each site; ``figures``: the files drawn; ``last_output``: the same pairs' profile
    of what leaves the last layer, if that was looked at.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        aliases: dict[str, str],
        pairs: tuple[EncodedPair, ...],
        moments: Array,
        sizes: dict[str, int],
    ) -> None:
        self.keys, self.aliases, self.pairs, self.moments, self.sizes = keys, aliases, pairs, moments, sizes
        self.figures: tuple[str, ...] = ()
        self.last_output: Profile | None = None

    def only(self, rows: Sequence[int]) -> Profile:
        """The profile of some of the pairs; figures are of all of them."""
        pairs = tuple(self.pairs[row] for row in rows)
        found = Profile(self.keys, self.aliases, pairs, self.moments[list(rows)], self.sizes)
        found.last_output = self.last_output.only(rows) if self.last_output is not None else None
        return found

    def means(self, scope: int) -> Array:
        """Mean difference ``[pairs, sites]`` in a scope."""
        values: Array = self.moments[:, :, scope, MEAN]
        return values

    def components(self) -> dict[str, list[str]]:
        """Component → its keys, layer by layer."""
        found: dict[str, list[str]] = {}
        for key in self.keys:
            found.setdefault((split_key(key) or (key, 0))[0], []).append(key)
        return found

    def mean_of(self, keys: Collection[str], scope: int) -> Array:
        """Mean difference ``[pairs]`` in a scope, over these keys' layers, each counting the same."""
        rows = [row for row, key in enumerate(self.keys) if key in keys]
        values: Array = self.means(scope)[:, rows].mean(axis=1)
        return values

    def has_signal(self, scope: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which pairs ``[pairs]`` have any position in a scope."""
        found: np.ndarray[Any, np.dtype[np.bool_]] = np.any(self.moments[:, :, scope, COUNT] > 0, axis=1)
        return found

    def layer_means(self) -> dict[str, float]:
        """Layer key → mean difference from the first difference on, over the pairs that have any."""
        heard = self.has_signal(FROM_FIRST_DIFFERENCE)
        if not heard.any():
            return {}
        means = self.means(FROM_FIRST_DIFFERENCE)[heard].mean(axis=0)
        return {key: float(mean) for key, mean in zip(self.keys, means, strict=True)}

    def metrics(self, number: int) -> dict[str, Any]:
        """The guide's entry of one pair: prompts and metrics."""
        pair = self.pairs[number]
        built = build_metrics(
            self.keys,
            self.moments[number],
            aliases=self.aliases,
            alignment=pair.alignment.as_dict(pair.first.tokens, pair.second.tokens),
        )
        return {"prompt1": pair.first.text, "prompt2": pair.second.text, "metrics": built}


class PairMetrics(Mapping[str, dict[str, Any]]):
    """``pair_1`` … ``pair_n`` → prompts and metrics, built when they are looked up, so memory stays flat.

    Every look-up builds the entry anew; ``dict(metrics)`` keeps them all.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._numbers = {f"pair_{number + 1}": number for number in range(len(profile.pairs))}

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._profile.metrics(self._numbers[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"<bias metrics of {len(self)} pairs>"

    def _repr_html_(self) -> str:
        rows = []
        for number, entry in enumerate(islice(self.values(), MOST_ROWS + 1), 1):
            overall = entry["metrics"]["overall_metrics"]
            later = overall.get("from_first_difference", {}).get("mean_difference")
            rows.append((number, entry["prompt1"], entry["prompt2"], overall["mean_difference"], later))
        head = ("pair", "prompt 1", "prompt 2", "mean difference", "from the first difference on")
        return table(head, rows)


def write_pair_metrics(profile: Profile, path: Path) -> None:
    """Write ``{"pair_1": …}`` as strict JSON, a pair at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(len(profile.pairs)):
            file.write("{\n" if number == 0 else ",\n")
            entry = json.dumps(
                profile.metrics(number), allow_nan=False, indent=1 if len(profile.pairs) <= 20 else None
            )
            file.write(f'"pair_{number + 1}": {entry}')
        file.write("\n}\n")
