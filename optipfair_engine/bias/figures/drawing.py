"""How each kind of figure is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optipfair_engine.bias.figures.canvas import (
    BLUE,
    GREY,
    INK,
    NOTE,
    ORANGE,
    TICK,
    VERMILLION,
    add_axes,
    new_figure,
    plain,
)
from optipfair_engine.bias.figures.chart import draw_chart
from optipfair_engine.bias.figures.effects import draw_effects
from optipfair_engine.bias.figures.fonts import families
from optipfair_engine.bias.figures.kinds import (
    BarData,
    ChartData,
    EffectData,
    FigureData,
    HeatmapData,
    PcaData,
    Style,
)
from optipfair_engine.bias.figures.labels import Label, place_labels
from optipfair_engine.bias.figures.texts import shorten
from optipfair_engine.figures import Drawing


def draw(data: FigureData, style: Style) -> Drawing:
    """The data as a matplotlib figure (with an Agg canvas), in fonts that have its characters."""
    with rc_context({"font.family": families(_texts(data))}):
        if isinstance(data, ChartData):
            return draw_chart(data, style)
        if isinstance(data, EffectData):
            return draw_effects(data, style)
        if isinstance(data, BarData):
            return draw_bars(data, style)
        if isinstance(data, HeatmapData):
            return draw_heatmap(data, style)
        return draw_pca(data, style)


def _texts(data: FigureData) -> list[str]:
    """What a figure says in others' words."""
    if isinstance(data, ChartData | EffectData):
        return [data.title, data.subtitle]
    caption = data.caption
    labels = [] if isinstance(data, BarData) else data.labels
    return [caption.model, caption.first, caption.second, caption.note, *labels]


def _bars_title(data: BarData) -> str:
    values = data.later if any(data.later) else data.everywhere
    if not any(values):
        return f"{data.layer_type}: no difference between the two prompts"
    layer, greatest = max(zip(data.layers, values, strict=True), key=lambda entry: entry[1])
    where = f"furthest apart in layer {layer}" if len(values) > 1 else f"apart in layer {layer}"
    return f"{data.layer_type}: the two prompts are {where} ({greatest:.3g})"


def _heatmap_title(data: HeatmapData) -> str:
    if not data.values.any():
        return f"{data.layer_key}: no difference between the two prompts"
    means = data.values.mean(axis=1)
    return f"{data.layer_key}: the two prompts differ most at “{data.labels[int(means.argmax())]}”"


def _measured(group_size: int) -> str:
    if group_size == 1:
        return "|activation 2 − activation 1| of each neuron"
    return f"largest |activation 2 − activation 1| of each {group_size} neurons"


def _pca_title(data: PcaData) -> str:
    moved = np.linalg.norm(data.second - data.first, axis=1)
    if not moved.any():
        return f"{data.layer_key}: no token moves between the two prompts"
    return f"{data.layer_key}: “{data.labels[int(moved.argmax())]}” moves furthest between the two prompts"


def draw_bars(data: BarData, style: Style) -> Drawing:
    """Two bars a layer."""
    figure = new_figure(
        (10.2, 6.4),
        style,
        _bars_title(data),
        f"{data.caption.model} · mean |activation 2 − activation 1| over features and positions",
        data.caption,
    )
    axes = add_axes(figure, "mean_diff")
    places = np.arange(len(data.layers))
    width = 0.4 if len(places) > 3 else 0.28
    axes.bar(places - width / 2, data.everywhere, width, color=BLUE, label="all compared positions")
    axes.bar(places + width / 2, data.later, width, color=ORANGE, label="from the first difference on")
    step = max(1, -(-len(places) // 40))
    axes.set_xticks(places[::step], [str(layer) for layer in data.layers[::step]])
    axes.set_xlim(-0.75, len(places) - 0.25)
    axes.set_xlabel("Layer", fontsize=10, color=INK)
    axes.set_ylabel("Mean absolute difference (activation units)", fontsize=10, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=NOTE, borderaxespad=0.2
    )
    return figure


def _row_labels(axes: Axes, data: HeatmapData, style: Style, room: float) -> None:
    """Tokens beside the rows, the changed ones marked; as many as fit (72 points an inch)."""
    rows = len(data.labels)
    size = float(np.clip(room * 72 / max(rows, 1) * 0.72, 6, 10))
    step = max(1, int(np.ceil(rows * size * 1.25 / (room * 72))))
    marked = [flag and style.highlight_diff for flag in data.changed]
    shown = [row for row in range(rows) if row % step == 0 or marked[row]]
    texts = [shorten(data.labels[row]) + ("  ▸" if marked[row] else "") for row in shown]
    axes.set_yticks(shown, texts, fontsize=size, parse_math=False)
    for row, text in zip(shown, axes.get_yticklabels(), strict=True):
        if marked[row]:
            text.set(color=VERMILLION, fontweight="bold")


def draw_heatmap(data: HeatmapData, style: Style) -> Drawing:
    """Tokens down, neurons across; the scale ends at the 99th percentile (few neurons are far above)."""
    rows, groups = data.values.shape
    figure = new_figure(
        (10.2, float(np.clip(2.8 + 0.13 * rows, 8.3, 18))),
        style,
        _heatmap_title(data),
        f"{data.caption.model} · {_measured(data.group_size)}",
        data.caption,
    )
    axes = add_axes(figure, "heatmap")
    greatest = float(data.values.max(initial=0.0))
    limit = float(np.percentile(data.values, 99)) if data.values.size else 0.0
    limit = limit if limit > 0 else (greatest or 1.0)
    # a mesh of few cells is drawn in a third of the time that resampling an image to 300 dpi takes
    across = np.minimum(np.arange(groups + 1) * data.group_size, data.neurons)
    image = axes.pcolormesh(
        across,
        np.arange(rows + 1) - 0.5,
        data.values,
        cmap=style.cmap,
        vmin=0,
        vmax=limit,
        antialiased=False,
    )
    axes.set_ylim(rows - 0.5, -0.5)
    _row_labels(axes, data, style, figure.get_size_inches()[1] - 2.7)
    axes.set_xlabel(f"Neuron (feature) index, {data.neurons} in all", fontsize=10, color=INK)
    above: dict[str, Any] = {"xytext": (-8, 8), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axes.annotate("Token (1 → 2 where changed)", (0, 1), xycoords="axes fraction", fontsize=NOTE, **above)
    axes.tick_params(axis="x", labelsize=TICK)
    _colour_scale(figure, axes, image, greatest, limit)
    return figure


def _colour_scale(figure: Figure, axes: Axes, image: Any, greatest: float, limit: float) -> None:
    box = axes.get_position()
    width = figure.get_size_inches()[0]
    scale = figure.add_axes((box.x1 + 0.2 / width, box.y0, 0.2 / width, box.height))
    bar = figure.colorbar(image, cax=scale, extend="max" if greatest > limit else "neither")
    bar.set_label(f"Absolute difference (greatest: {greatest:.3g})", fontsize=NOTE, color=INK)
    bar.ax.tick_params(labelsize=TICK)


def draw_pca(data: PcaData, style: Style) -> Drawing:
    """Circles for prompt 1, triangles for prompt 2, an arrow from each position to its counterpart."""
    figure = new_figure(
        (12.2, 10.3),
        style,
        _pca_title(data),
        f"{data.caption.model} · first two principal components of both prompts' positions together"
        + (f" · {data.omitted}" if data.omitted else ""),
        data.caption,
    )
    axes = add_axes(figure, "pca")
    _arrows(axes, data, style)
    groups = (("prompt 1", data.first, "o", BLUE, 0.85), ("prompt 2", data.second, "^", ORANGE, 0.9))
    for label, at, marker, color, alpha in groups:
        x, y = at.T
        axes.scatter(x, y, s=42, marker=marker, color=color, alpha=alpha, label=label, zorder=3, linewidths=0)
    axes.margins(0.1)
    axes.set_xlabel(f"PC1 ({data.explained[0]:.1%} of the variance)", fontsize=10, color=INK)
    axes.set_ylabel(f"PC2 ({data.explained[1]:.1%} of the variance)", fontsize=10, color=INK)
    axes.grid(color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=NOTE, borderaxespad=0.2
    )
    # labels keep off the arrows as well as off the points
    steps = np.linspace(0, 1, 9)[:, None, None]
    along = (data.first * (1 - steps) + data.second * steps).reshape(-1, 2)
    place_labels(figure, axes, _pca_labels(data, style), along)
    return figure


def _arrows(axes: Axes, data: PcaData, style: Style) -> None:
    moves = data.second - data.first
    colours = [VERMILLION if changed and style.highlight_diff else GREY for changed in data.changed]
    axes.quiver(
        *data.first.T, *moves.T, angles="xy", scale_units="xy", scale=1, color=colours,
        width=0.0016, headwidth=5, headlength=6, headaxislength=5, minlength=0, zorder=2, alpha=0.75,
    )  # fmt: skip


def _pca_labels(data: PcaData, style: Style) -> list[Label]:
    """One label a position, at the middle of its arrow; the changed ones first: they get the best place."""
    middles = (data.first + data.second) / 2
    labels = []
    for (x, y), text, changed in zip(middles, data.labels, data.changed, strict=True):
        marked = changed and style.highlight_diff
        labels.append(Label(float(x), float(y), shorten(text), VERMILLION if marked else INK, marked))
    return sorted(labels, key=lambda label: not label.bold)
