"""The figure of patching: what each unit's exchange moves, beside how strongly the unit reacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from optipfair_engine.bias.figures.canvas import BLUE, INK, NOTE, ORANGE, add_axes, new_figure, plain
from optipfair_engine.bias.figures.kinds import EffectData, EffectSeries, Style
from optipfair_engine.bias.figures.labels import Label, place_labels
from optipfair_engine.bias.results.cause import Cause, Patched
from optipfair_engine.bias.wording import three_digits
from optipfair_engine.figures import Drawing

#: How many of the largest effects are named.
_NAMED: Final = 6
_ONE: Final = {"neurons": "neuron", "heads": "head", "layers": "half of a layer"}


def effects_of(cause: Cause, model: str) -> EffectData:
    """The figure's data: layers along the axis of layers, neurons and heads along that of reactions."""
    subtitle = (
        f"{model} · {len(cause.patched)} of {cause.units:,} {cause.kind} patched · {cause.pairs} pairs, "
        f"{cause.templates} templates · lines: 95 % intervals of the largest"
    )
    if cause.kind == "layers":
        parts = {name: [u for u in cause.patched if u.component == name] for name in ("attention", "mlp")}
        series = [_series(name, sorted(units, key=lambda u: u.layer), by_layer=True)
                  for name, units in parts.items() if units]  # fmt: skip
        return EffectData(_title(cause), subtitle, "layer", series, ())
    named = tuple(unit.name for unit in cause.patched[:_NAMED])
    label = "reaction: mean difference of activations between the two prompts"
    return EffectData(_title(cause), subtitle, label, [_series("", cause.patched, by_layer=False)], named)


def _title(cause: Cause) -> str:
    first, one = cause.patched[0], _ONE[cause.kind]
    share = f"{three_digits(100 * first.effect.value)} % of the difference"
    if first.reaction_rank == 1:
        return f"The {one} that reacts most ({first.name}) also moves most: {share}"
    return f"{one.capitalize()} {first.name} moves {share}; by reaction it is number {first.reaction_rank}"


def _series(name: str, units: Sequence[Patched], *, by_layer: bool) -> EffectSeries:
    return EffectSeries(
        name,
        [float(unit.layer) if by_layer else unit.reaction for unit in units],
        [unit.effect.value for unit in units],
        [unit.effect.low for unit in units],
        [unit.effect.high for unit in units],
    )


def draw_effects(data: EffectData, style: Style) -> Drawing:
    """A point a unit; shares of the next-token logits' difference upwards."""
    figure = new_figure((10.2, 6.0), style, data.title, data.subtitle)
    axes = add_axes(figure, "effects")
    axes.axhline(0, color=INK, linewidth=0.8)
    for colour, marker, series in zip((BLUE, ORANGE), "o^", data.series, strict=False):
        _draw_series(axes, series, colour, marker, len(data.named))
    if not data.named:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=NOTE)
    elif min(data.series[0].x) > 0:
        axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlabel(data.x_label, fontsize=10, color=INK)
    axes.set_ylabel("effect: share of the difference in next-token logits", fontsize=10, color=INK)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    plain(axes)
    place_labels(figure, axes, list(_labels(data)), np.array(_points(data)))
    return figure


def _draw_series(axes: Axes, series: EffectSeries, colour: str, marker: str, named: int) -> None:
    line = "-" if series.name else "none"
    axes.plot(
        series.x, series.y, ls=line, marker=marker, color=colour, markersize=5, label=series.name, lw=1.2
    )  # fmt: skip
    limited = range(len(series.x)) if not named else range(min(named, len(series.x)))
    for number in limited:
        low, high = series.low[number], series.high[number]
        if low is not None and high is not None:
            axes.vlines(series.x[number], low, high, color=colour, linewidth=1, alpha=0.6)


def _points(data: EffectData) -> list[tuple[float, float]]:
    return [point for series in data.series for point in zip(series.x, series.y, strict=True)]


def _labels(data: EffectData) -> Iterable[Label]:
    if data.named:
        for name, x, y in zip(data.named, data.series[0].x, data.series[0].y, strict=False):
            yield Label(x, y, name, INK, bold=False)
