"""Figures of differences as plain data, and what a caller may change of how they look.

This module loads neither torch nor matplotlib, so that drawing processes start fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from optipfair_engine.errors import InvalidOptionError

Array: TypeAlias = npt.NDArray[np.float64]

FORMATS: Final = ("png", "svg", "pdf")
#: Figures of single pairs, by the guide's names.
VISUALIZATION_TYPES: Final = ("mean_diff", "heatmap", "pca")
#: Inches of each kind of figure around its axes (left, right, bottom, top): titles, prompts, labels.
MARGINS: Final = {
    "mean_diff": (0.95, 0.35, 1.55, 1.2),
    "heatmap": (2.45, 1.35, 1.5, 1.2),
    "pca": (0.95, 0.45, 1.55, 1.25),
    "effects": (0.95, 0.45, 0.7, 1.1),
}
#: Inches that the axes themselves need, both ways.
_LEAST_AXES: Final = 0.5


@dataclass(frozen=True)
class Style:
    """What a caller may change. ``figsize`` in inches; None: the kind's own size."""

    dpi: int = 300
    figsize: tuple[float, float] | None = None
    cmap: str = "cividis"
    highlight_diff: bool = True


@dataclass(frozen=True)
class Caption:
    """Which model and which prompts a figure is of; ``note`` says what of them could not be compared."""

    model: str
    first: str
    second: str
    note: str = ""


@dataclass(frozen=True)
class BarData:
    """Mean |Δ| by layer: over all compared positions, and from the first difference on."""

    caption: Caption
    layer_type: str
    layers: Sequence[int]
    everywhere: Sequence[float]
    later: Sequence[float]


@dataclass(frozen=True)
class HeatmapData:
    """|Δ| of one layer: ``values [units, groups]``, the largest of each group of ``group_size`` neurons."""

    caption: Caption
    layer_key: str
    values: Array
    group_size: int
    neurons: int
    labels: Sequence[str]
    changed: Sequence[bool]


@dataclass(frozen=True)
class PcaData:
    """Both sides' positions of one layer on the first two components; ``omitted`` names outliers left out."""

    caption: Caption
    layer_key: str
    first: Array
    second: Array
    labels: Sequence[str]
    changed: Sequence[bool]
    explained: tuple[float, float]
    omitted: str


@dataclass(frozen=True)
class Panel:
    """One component's mean |Δ| by layer, with limits where there are any, and what it is compared with."""

    name: str
    layers: Sequence[int]
    means: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None
    controls: Sequence[float] | None
    baseline: Sequence[float] | None


@dataclass(frozen=True)
class ChartData:
    """All components and layers over all pairs; ``baseline`` names the other model, if there is one."""

    title: str
    subtitle: str
    panels: Sequence[Panel]
    baseline: str | None = None


@dataclass(frozen=True)
class EffectSeries:
    """Points of one kind of unit; the largest effects first where they are named. Limits may be unknown."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


@dataclass(frozen=True)
class EffectData:
    """Effects of patched units; ``named`` are the labels of the first points of the first series."""

    title: str
    subtitle: str
    x_label: str
    series: Sequence[EffectSeries]
    named: Sequence[str]


FigureData: TypeAlias = BarData | HeatmapData | PcaData | ChartData | EffectData


def check_figsize(style: Style, kinds: Iterable[str]) -> None:
    """Refuse a size that the texts of these kinds of figures (``mean_diff``, ``heatmap``, ``pca``) fill.

    Raises:
        InvalidOptionError: it is too small; the text names the smallest one.
    """
    for kind in kinds:
        left, right, bottom, top = MARGINS[kind]
        least = (left + right + _LEAST_AXES, bottom + top + _LEAST_AXES)
        if style.figsize is not None and (style.figsize[0] < least[0] or style.figsize[1] < least[1]):
            raise InvalidOptionError(
                f"figsize {tuple(style.figsize)} is too small for {kind}: with its texts it needs at least "
                f"({least[0]:.2f}, {least[1]:.2f}) inches"
            )
