"""From compared rows to figures: which ones a run needs, their names, and the data of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.activations.pairs import get_layer_names, select_layers
from optipfair_engine.bias.activations.stream import BatchUnits, EncodedPair
from optipfair_engine.bias.defaults import DEFAULT_LAYER_TYPES
from optipfair_engine.bias.figures.kinds import (
    VISUALIZATION_TYPES,
    Array,
    BarData,
    Caption,
    FigureData,
    HeatmapData,
    PcaData,
)
from optipfair_engine.bias.figures.texts import changed_label
from optipfair_engine.bias.statistics.metrics import ALL_POSITIONS, FROM_FIRST_DIFFERENCE
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.errors import InvalidOptionError

PCA_LAYER_TYPES: Final = ("mlp_output", "attention_output")
#: Groups of neurons across a heatmap: more could not be told apart.
HEATMAP_COLUMNS: Final = 96
#: Positions further than this many median distances from the median would press all others into one point.
OUTLIER_DISTANCE: Final = 6.0

Sink = Callable[[str, FigureData], None]


@dataclass(frozen=True)
class FigurePlan:
    """The keys that each kind of figure shows, for every pair."""

    bars: dict[str, list[str]]
    heatmaps: tuple[str, ...]
    pcas: tuple[str, ...]

    @property
    def kinds(self) -> list[str]:
        """The kinds of figures that there are."""
        shown = {"mean_diff": self.bars, "heatmap": self.heatmaps, "pca": self.pcas}
        return [kind for kind, keys in shown.items() if keys]

    @property
    def per_pair(self) -> int:
        """Figures a pair."""
        return len(self.bars) + len(self.heatmaps) + len(self.pcas)


def plan_figures(
    keys: Sequence[str],
    visualization_types: Iterable[str],
    layers: str | Sequence[int],
    layer_types: Sequence[str] | None = None,
) -> FigurePlan:
    """Which figures to draw.

    Args:
        keys: the layer keys of the model.
        visualization_types: any of ``mean_diff``, ``heatmap``, ``pca``; none is fine.
        layers: as ``select_layers``.
        layer_types: components; by default those of the guide that the family has (PCA: MLP and attention
            output).

    Raises:
        InvalidOptionError: an unknown type of figure, or a component that the model lacks.
    """
    kinds = [visualization_types] if isinstance(visualization_types, str) else list(visualization_types)
    unknown = sorted(set(kinds) - set(VISUALIZATION_TYPES))
    if unknown:
        raise InvalidOptionError(
            f"Unknown visualization types {unknown}; there are {', '.join(VISUALIZATION_TYPES)}"
        )
    chosen = {name: select_layers(names_of(keys, name), layers) for name in _types(keys, layer_types)}
    pca_types = chosen if layer_types is not None else [name for name in PCA_LAYER_TYPES if name in chosen]
    return FigurePlan(
        bars=chosen if "mean_diff" in kinds else {},
        heatmaps=tuple(k for names in chosen.values() for k in names) if "heatmap" in kinds else (),
        pcas=tuple(k for name in pca_types for k in chosen[name]) if "pca" in kinds else (),
    )


def _types(keys: Sequence[str], layer_types: Sequence[str] | None) -> list[str]:
    if layer_types is not None:
        for name in layer_types:
            names_of(keys, name)
        return list(dict.fromkeys(layer_types))
    present = {parts[0] for key in keys if (parts := split_key(key)) is not None}
    return [name for name in DEFAULT_LAYER_TYPES if name in present]


def names_of(keys: Sequence[str], layer_type: str) -> list[str]:
    """The keys of one component, sorted by layer.

    Raises:
        InvalidOptionError: there are none; the text lists the components.
    """
    found = [key for key in keys if key.startswith(f"{layer_type}_layer_")]
    if not found:
        raise InvalidOptionError(
            f"No layers of type {layer_type} found in activations; there are {overview(keys)}"
        )
    return get_layer_names(dict.fromkeys(found), layer_type)


def check_key(keys: Sequence[str], key: str) -> str:
    """The key, if the model has it.

    Raises:
        InvalidOptionError: it doesn't; the text lists what there is.
    """
    if key not in keys:
        raise InvalidOptionError(f"Layer {key} not found in activations; there are {overview(keys)}")
    return key


def overview(keys: Sequence[str]) -> str:
    """``mlp_output_layer_0 … mlp_output_layer_29, …``."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.rpartition("_layer_")[0], []).append(key)
    spans = [[names[0]] if len(names) == 1 else [names[0], names[-1]] for names in groups.values()]
    return ", ".join(" … ".join(span) for span in spans)


class FigureConsumer:
    """Makes a plan's heatmaps and PCAs while the stream runs, and gives them to ``sink(name, data)``.

    They are given at a batch's end, once nothing in it turned out to be NaN or infinite.
    """

    def __init__(self, plan: FigurePlan, model_name: str, sink: Sink, first_index: int = 0) -> None:
        self._plan, self._model_name, self._sink, self._first_index = plan, model_name, sink, first_index
        self._units: BatchUnits | None = None
        self._made: list[tuple[str, FigureData]] = []

    def begin(self, units: BatchUnits) -> None:
        """A batch starts."""
        self._units, self._made = units, []

    def end(self) -> None:
        """The batch is over: give its figures."""
        self._units = None
        for name, data in self._made:
            self._sink(name, data)
        self._made = []

    def take(self, key: str, first: Tensor, second: Tensor, alias: str | None) -> None:
        """Make this layer's figures of every pair in the batch."""
        if self._units is None or (key not in self._plan.heatmaps and key not in self._plan.pcas):
            return
        if not bool((first.sum() + second.sum()).isfinite()):
            return  # the stream refuses the batch at its end, and names the place
        for number, pair in enumerate(self._units.pairs):
            rows = slice(int(self._units.offsets[number]), int(self._units.offsets[number + 1]))
            caption, index = caption_of(pair, self._model_name), pair.index + self._first_index
            if key in self._plan.heatmaps:
                heatmap = heatmap_data(key, pair, first[rows], second[rows], caption)
                self._made.append((f"heatmap_{key}_pair{index}", heatmap))
            if key in self._plan.pcas:
                pca = pca_data(key, pair, first[rows], second[rows], caption)
                self._made.append((f"pca_{key}_pair{index}", pca))


def give_bars(plan: FigurePlan, profile: Profile, model_name: str, sink: Sink, first_index: int = 0) -> None:
    """Make the bar charts of all pairs."""
    rows = {key: row for row, key in enumerate(profile.keys)}
    everywhere, later = profile.means(ALL_POSITIONS), profile.means(FROM_FIRST_DIFFERENCE)
    for number, pair in enumerate(profile.pairs):
        for layer_type, keys in plan.bars.items():
            data = BarData(
                caption_of(pair, model_name),
                layer_type,
                [int(key.rpartition("_")[2]) for key in keys],
                [float(everywhere[number, rows[key]]) for key in keys],
                [float(later[number, rows[key]]) for key in keys],
            )
            sink(f"mean_diff_{layer_type}_pair{pair.index + first_index}", data)


def caption_of(pair: EncodedPair, model_name: str) -> Caption:
    """The caption of a pair's figures."""
    alone = [
        pair.first.words(unit.start1, unit.stop1) + pair.second.words(unit.start2, unit.stop2)
        for unit in pair.alignment.units
        if not unit.aligned
    ]
    note = f"In one prompt only, not compared: {', '.join(alone)}" if alone else ""
    return Caption(model_name, pair.first.text, pair.second.text, note)


def unit_labels(pair: EncodedPair) -> tuple[list[str], list[bool]]:
    """A label for each compared unit (``a → b`` where changed), and which are changed.

    Equal tokens that are bytes of different letters are changed too: what is read there is another letter.
    """
    labels, changed = [], []
    for unit in pair.alignment.compared:
        words = pair.first.words(unit.start1, unit.stop1)
        other = pair.second.words(unit.start2, unit.stop2)
        differs = unit.kind != "equal" or words != other
        labels.append(changed_label(words, other) if differs else words)
        changed.append(differs)
    return labels, changed


def heatmap_data(key: str, pair: EncodedPair, first: Tensor, second: Tensor, caption: Caption) -> HeatmapData:
    """The heatmap of one layer from both sides' rows ``[units, features]``."""
    difference = (second - first).abs().cpu().double().numpy()
    neurons = difference.shape[1]
    size = -(-neurons // HEATMAP_COLUMNS)
    groups = -(-neurons // size)
    padded = np.zeros((len(difference), groups * size))
    padded[:, :neurons] = difference
    labels, changed = unit_labels(pair)
    values = padded.reshape(len(difference), groups, size).max(axis=2)
    return HeatmapData(caption, key, values, size, neurons, labels, changed)


def pca_data(key: str, pair: EncodedPair, first: Tensor, second: Tensor, caption: Caption) -> PcaData:
    """Both sides' rows ``[units, features]`` on the first two principal components of all of them together.

    Attention sinks (often the first token) lie hundreds of times further out than the rest: they are left
    out, and named in the figure.
    """
    rows = first.cpu().double().numpy(), second.cpu().double().numpy()
    labels, changed = unit_labels(pair)
    kept = _near(*rows)
    omitted = [label for label, near in zip(labels, kept, strict=True) if not near]
    points1, points2, explained = _project(rows[0][kept], rows[1][kept])
    return PcaData(
        caption,
        key,
        points1,
        points2,
        [label for label, near in zip(labels, kept, strict=True) if near],
        [flag for flag, near in zip(changed, kept, strict=True) if near],
        explained,
        f"far outside and not shown: {', '.join(omitted)}" if omitted else "",
    )


def _near(first: Array, second: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which units to show: all, but for far outliers."""
    both = np.concatenate([first, second])
    distance = np.linalg.norm(both - np.median(both, axis=0), axis=1).reshape(2, -1).max(axis=0)
    limit = OUTLIER_DISTANCE * float(np.median(distance)) if len(distance) else 0.0
    near: np.ndarray[tuple[int], np.dtype[np.bool_]] = distance <= limit
    return near if near.sum() >= 3 and limit > 0 else np.ones(len(distance), dtype=bool)


def _project(first: Array, second: Array) -> tuple[Array, Array, tuple[float, float]]:
    both = np.concatenate([first, second])
    centred = both - both.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    # a singular vector's sign is arbitrary: make its greatest entry positive, so that the figure is
    # reproducible
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    scores = np.zeros((len(both), 2))
    found = min(2, len(singular))
    scores[:, :found] = (left * singular * signs)[:, :found]
    variance = np.square(singular)
    shares = [float(share) for share in variance[:2] / variance.sum()] if variance.sum() > 0 else []
    shares += [0.0] * (2 - len(shares))
    return scores[: len(first)], scores[len(first) :], (shares[0], shares[1])
