"""Pictures of differences as plain data, and how each is drawn, by matplotlib's object API only.

Colours are Okabe & Ito's and the ``cividis`` map, which people with colour-blindness can tell apart. This
module loads no torch, so that drawing processes start fast.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from optipfair_engine.bias.figures.labels import Label, place_labels
from optipfair_engine.errors import InvalidOptionError

Array: TypeAlias = npt.NDArray[np.float64]

BLUE, ORANGE, VERMILLION, GREY, INK = "#0072B2", "#E69F00", "#D55E00", "#8A8A8A", "#222222"
FORMATS: Final = ("png", "svg", "pdf")
#: Inches of each kind of figure around its axes (left, right, bottom, top): titles, prompts, labels.
MARGINS: Final = {
    "mean_diff": (0.95, 0.35, 1.55, 1.2),
    "heatmap": (2.45, 1.35, 1.5, 1.2),
    "pca": (0.95, 0.45, 1.55, 1.25),
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
    """Which model and which prompts a picture is of; ``note`` says what of them could not be compared."""

    model: str
    first: str
    second: str
    note: str = ""


@dataclass(frozen=True)
class BarPicture:
    """Mean |Δ| by layer: over all compared positions, and from the first difference on."""

    caption: Caption
    layer_type: str
    layers: Sequence[int]
    everywhere: Sequence[float]
    later: Sequence[float]


@dataclass(frozen=True)
class HeatmapPicture:
    """|Δ| of one layer: ``values [units, groups]``, the largest of each group of ``group_size`` neurons."""

    caption: Caption
    layer_key: str
    values: Array
    group_size: int
    neurons: int
    labels: Sequence[str]
    changed: Sequence[bool]


@dataclass(frozen=True)
class PcaPicture:
    """Both sides' positions of one layer on the first two components; ``omitted`` names outliers left out."""

    caption: Caption
    layer_key: str
    first: Array
    second: Array
    labels: Sequence[str]
    changed: Sequence[bool]
    explained: tuple[float, float]
    omitted: str


Picture: TypeAlias = BarPicture | HeatmapPicture | PcaPicture

_TITLE, _NOTE, _TICK = 14, 9.5, 9


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


def draw(picture: Picture, style: Style) -> Figure:
    """The picture as a matplotlib figure (with an Agg canvas)."""
    if isinstance(picture, BarPicture):
        return draw_bars(picture, style)
    if isinstance(picture, HeatmapPicture):
        return draw_heatmap(picture, style)
    return draw_pca(picture, style)


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write the figure in the format of the file's ending (png, svg, pdf); folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        _save_png(figure, path, dpi)
        return
    # without a date, and with ids that don't hang on chance, the same picture gives the same bytes
    options: dict[str, Any] = {
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }
    with rc_context({"svg.hashsalt": "optipfair"}):
        figure.savefig(path, dpi=dpi, **options.get(path.suffix[1:], {}))


def _save_png(figure: Figure, path: Path, dpi: int) -> None:
    """Without the alpha channel and at zlib's fastest level: half the time of ``savefig``, twice the size."""
    canvas, before = FigureCanvasAgg(figure), figure.get_dpi()
    figure.set_dpi(dpi)
    try:
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG", compress_level=1, dpi=(dpi, dpi))
    finally:
        figure.set_dpi(before)


def _new(size: tuple[float, float], style: Style, title: str, subtitle: str, caption: Caption) -> Figure:
    width, height = style.figsize or size
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    x, top = 0.35 / width, 1 - 0.18 / height
    figure.text(x, top, title, fontsize=_TITLE, fontweight="bold", color=INK, va="top", parse_math=False)
    figure.text(x, 1 - 0.5 / height, subtitle, fontsize=_NOTE, color="#555555", va="top", parse_math=False)
    wide = max(20, int((width - 0.9) * 72 / (_NOTE * 0.56)))
    lines = [*_wrapped("1", caption.first, wide), *_wrapped("2", caption.second, wide)]
    lines += [_shorten(caption.note, wide)] if caption.note else []
    figure.text(x, 0.14 / height, "\n".join(lines), fontsize=_NOTE, color=INK, va="bottom", parse_math=False)
    return figure


def _wrapped(number: str, prompt: str, width: int) -> list[str]:
    return textwrap.wrap(
        prompt, width, initial_indent=f"{number}: ", subsequent_indent="    ", max_lines=2, placeholder=" …"
    ) or [f"{number}: (empty)"]


def _axes(figure: Figure, kind: str) -> Axes:
    """Axes with margins in inches: text has a size in inches too, whatever the figure's."""
    left, right, bottom, top = MARGINS[kind]
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=_TICK, color=GREY)


def draw_bars(picture: BarPicture, style: Style) -> Figure:
    """Two bars a layer."""
    figure = _new(
        (10.2, 6.4),
        style,
        f"How far apart the two prompts are, by layer: {picture.layer_type}",
        f"{picture.caption.model} · mean |activation 2 − activation 1| over features and positions, in the "
        "component's own units",
        picture.caption,
    )
    axes = _axes(figure, "mean_diff")
    places = np.arange(len(picture.layers))
    width = 0.4 if len(places) > 3 else 0.28
    axes.bar(places - width / 2, picture.everywhere, width, color=BLUE, label="all compared positions")
    axes.bar(places + width / 2, picture.later, width, color=ORANGE, label="from the first difference on")
    step = max(1, -(-len(places) // 40))
    axes.set_xticks(places[::step], [str(layer) for layer in picture.layers[::step]])
    axes.set_xlim(-0.75, len(places) - 0.25)
    axes.set_xlabel("Layer", fontsize=10, color=INK)
    axes.set_ylabel("Mean absolute difference", fontsize=10, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    _plain(axes)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=_NOTE, borderaxespad=0.2
    )
    return figure


def _row_labels(axes: Axes, picture: HeatmapPicture, style: Style, room: float) -> None:
    """Tokens beside the rows, the changed ones marked; as many as fit (72 points an inch)."""
    rows = len(picture.labels)
    size = float(np.clip(room * 72 / max(rows, 1) * 0.72, 6, 10))
    step = max(1, int(np.ceil(rows * size * 1.25 / (room * 72))))
    marked = [flag and style.highlight_diff for flag in picture.changed]
    shown = [row for row in range(rows) if row % step == 0 or marked[row]]
    texts = [_shorten(picture.labels[row]) + ("  ▸" if marked[row] else "") for row in shown]
    axes.set_yticks(shown, texts, fontsize=size, parse_math=False)
    for row, text in zip(shown, axes.get_yticklabels(), strict=True):
        if marked[row]:
            text.set(color=VERMILLION, fontweight="bold")


def _shorten(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def draw_heatmap(picture: HeatmapPicture, style: Style) -> Figure:
    """Tokens down, neurons across; the scale ends at the 99th percentile (few neurons are far above)."""
    rows, groups = picture.values.shape
    figure = _new(
        (10.2, float(np.clip(2.8 + 0.13 * rows, 8.3, 18))),
        style,
        f"Where the two prompts differ: {picture.layer_key}",
        f"{picture.caption.model} · largest |activation 2 − activation 1| of each "
        f"{picture.group_size} neurons, in the component's own units",
        picture.caption,
    )
    axes = _axes(figure, "heatmap")
    greatest = float(picture.values.max(initial=0.0))
    limit = float(np.percentile(picture.values, 99)) if picture.values.size else 0.0
    limit = limit if limit > 0 else (greatest or 1.0)
    # a mesh of few cells is drawn in a third of the time that resampling an image to 300 dpi takes
    across = np.minimum(np.arange(groups + 1) * picture.group_size, picture.neurons)
    image = axes.pcolormesh(
        across,
        np.arange(rows + 1) - 0.5,
        picture.values,
        cmap=style.cmap,
        vmin=0,
        vmax=limit,
        antialiased=False,
    )
    axes.set_ylim(rows - 0.5, -0.5)
    _row_labels(axes, picture, style, figure.get_size_inches()[1] - 2.7)
    axes.set_xlabel(f"Neuron (feature) index, {picture.neurons} in all", fontsize=10, color=INK)
    above: dict[str, Any] = {"xytext": (-8, 8), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axes.annotate("Token (1 → 2 where changed)", (0, 1), xycoords="axes fraction", fontsize=_NOTE, **above)
    axes.tick_params(axis="x", labelsize=_TICK)
    _colour_scale(figure, axes, image, greatest, limit)
    return figure


def _colour_scale(figure: Figure, axes: Axes, image: Any, greatest: float, limit: float) -> None:
    box = axes.get_position()
    width = figure.get_size_inches()[0]
    scale = figure.add_axes((box.x1 + 0.2 / width, box.y0, 0.2 / width, box.height))
    bar = figure.colorbar(image, cax=scale, extend="max" if greatest > limit else "neither")
    bar.set_label(f"Absolute difference (greatest: {greatest:.3g})", fontsize=_NOTE, color=INK)
    bar.ax.tick_params(labelsize=_TICK)


def draw_pca(picture: PcaPicture, style: Style) -> Figure:
    """Circles for prompt 1, triangles for prompt 2, an arrow from each position to its counterpart."""
    figure = _new(
        (12.2, 10.3),
        style,
        f"How each token moves between the two prompts: {picture.layer_key}",
        f"{picture.caption.model} · first two principal components of both prompts' positions together"
        + (f" · {picture.omitted}" if picture.omitted else ""),
        picture.caption,
    )
    axes = _axes(figure, "pca")
    _arrows(axes, picture, style)
    axes.scatter(
        picture.first[:, 0],
        picture.first[:, 1],
        s=42,
        marker="o",
        color=BLUE,
        alpha=0.85,
        label="prompt 1",
        zorder=3,
        linewidths=0,
    )
    axes.scatter(
        picture.second[:, 0],
        picture.second[:, 1],
        s=42,
        marker="^",
        color=ORANGE,
        alpha=0.9,
        label="prompt 2",
        zorder=3,
        linewidths=0,
    )
    axes.margins(0.1)
    axes.set_xlabel(f"PC1 ({picture.explained[0]:.1%} of the variance)", fontsize=10, color=INK)
    axes.set_ylabel(f"PC2 ({picture.explained[1]:.1%} of the variance)", fontsize=10, color=INK)
    axes.grid(color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)
    _plain(axes)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=_NOTE, borderaxespad=0.2
    )
    # labels keep off the arrows as well as off the points
    steps = np.linspace(0, 1, 9)[:, None, None]
    along = (picture.first * (1 - steps) + picture.second * steps).reshape(-1, 2)
    place_labels(figure, axes, _pca_labels(picture, style), along)
    return figure


def _arrows(axes: Axes, picture: PcaPicture, style: Style) -> None:
    moves = picture.second - picture.first
    colours = [VERMILLION if changed and style.highlight_diff else GREY for changed in picture.changed]
    axes.quiver(
        *picture.first.T, *moves.T, angles="xy", scale_units="xy", scale=1, color=colours,
        width=0.0016, headwidth=5, headlength=6, headaxislength=5, minlength=0, zorder=2, alpha=0.75,
    )  # fmt: skip


def _pca_labels(picture: PcaPicture, style: Style) -> list[Label]:
    """One label a position, at the middle of its arrow; the changed ones first: they get the best place."""
    middles = (picture.first + picture.second) / 2
    labels = []
    for (x, y), text, changed in zip(middles, picture.labels, picture.changed, strict=True):
        marked = changed and style.highlight_diff
        labels.append(Label(float(x), float(y), _shorten(text), VERMILLION if marked else INK, marked))
    return sorted(labels, key=lambda label: not label.bold)
