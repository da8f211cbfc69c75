"""Figures of a pruning: drawn as matplotlib's, shown by notebooks, saved as PNG files.

Drawn with matplotlib's objects on the Agg canvas: no pyplot, so no global state and no display. The colours
are from Okabe and Ito's palette and the ``cividis`` map, which readers with any colour vision can tell apart.
A title says what was found, the line below it what is shown.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, VERMILLION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
GREY, INK, QUIET, GRID = "#8A8A8A", "#222222", "#555555", "#DDDDDD"
_DPI = 120
#: Inches: beside the title, and from the top to title, subtitle and axes.
_SIDE, _TITLE, _SUBTITLE, _AXES = 0.3, 0.16, 0.46, 1.0
#: The share of neurons at which curves are compared where nothing was removed yet, in percent.
_USUAL = 20


class Drawing(Figure):
    """A figure that a notebook shows, with pyplot or without, and once in the cell that drew it."""

    shown_in: int | None = None

    def _ipython_display_(self) -> None:
        self.show_in_notebook()

    def show_in_notebook(self) -> None:
        """Show the figure in a notebook, unless the cell did already; elsewhere do nothing."""
        shell = notebook()
        if shell is not None and self.shown_in != shell.execution_count:
            self.shown_in = shell.execution_count
            show = sys.modules["IPython"].display
            show.display(show.Image(data=self.png(), width=round(self.get_figwidth() * 80)))

    def png(self, dpi: int = _DPI) -> bytes:
        """The figure as the bytes of a PNG file: the same for the same numbers."""
        buffer = BytesIO()
        # no software name and date
        self.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
        return buffer.getvalue()


def notebook() -> Any:
    """The shell of the notebook that this runs in; ``None`` anywhere else."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if hasattr(shell, "kernel") else None


def load_drawing() -> None:
    """Load the fonts, by an empty figure: with this module's imports most of what the first figure takes."""
    _new("", "")[0].png()


def save(figure: Drawing, path: Path) -> Path:
    """Write a figure as a PNG file."""
    path.write_bytes(figure.png())
    return path


def _new(title: str, subtitle: str, *, width: float = 8.0, height: float = 4.4) -> tuple[Drawing, Axes]:
    figure = Drawing(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    for text, top, style in (
        (title, _TITLE, {"fontsize": 13, "fontweight": "bold", "color": INK}),
        (subtitle, _SUBTITLE, {"fontsize": 9.5, "color": QUIET}),
    ):
        figure.text(_SIDE / width, 1 - top / height, text, va="top", parse_math=False, **style)  # type: ignore[arg-type]
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - (_AXES - 0.15) / height - 0.01))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, color=GREY, labelsize=9)
    axes.set_axisbelow(True)
    return figure, axes


def _layer_axis(axes: Axes) -> None:
    axes.set_xlabel("layer", color=INK)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _value_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.6)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=9, borderaxespad=0.2
    )


def draw_parameters(original: int, pruned: int) -> Drawing:
    """Two bars: the number of parameters before and after."""
    share = 100 * (original - pruned) / max(original, 1)
    title = f"{share:.1f} % fewer parameters" if pruned < original else "As many parameters as before"
    figure, axes = _new(title, "parameters of the whole model, in millions", height=2.5)
    bars = axes.barh(["pruned", "original"], [pruned / 1e6, original / 1e6], color=[BLUE, GREY], height=0.62)
    axes.bar_label(bars, labels=[f"{pruned:,}", f"{original:,}"], padding=4, fontsize=9, color=INK)
    axes.set_xlabel("parameters (millions)", color=INK)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)
    return figure


def draw_kept(kept: Sequence[int], original: Sequence[int], *, unit: str) -> Drawing:
    """For each layer, how many ``unit`` (intermediate neurons, heads) stayed of how many there were."""
    subtitle = f"{unit} by layer: {sum(kept):,} of {sum(original):,} in all"
    figure, axes = _new(_kept_title(kept, original, unit), subtitle, width=9.0)
    layers = range(len(kept))
    axes.bar(layers, original, color=GREY, alpha=0.4, width=0.85, label="original")
    axes.bar(layers, kept, color=BLUE, width=0.85, label="kept")
    _value_axis(axes, unit)
    _layer_axis(axes)
    _legend(axes)
    return figure


def _kept_title(kept: Sequence[int], original: Sequence[int], unit: str) -> str:
    shares = {i: k / n for i, (k, n) in enumerate(zip(kept, original, strict=True)) if n}
    if not shares or all(share == 1 for share in shares.values()):
        return f"All {unit} stay"
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    if shares[most] - shares[least] < 0.005:
        return f"Every layer keeps {100 * shares[least]:.0f} % of its {unit}"
    greatest, smallest = (f"{100 * shares[layer]:.0f} %" for layer in (most, least))
    return f"Layer {most} keeps {greatest} of its {unit}, layer {least} {smallest}"


def draw_importance(scores: Mapping[int, float], removed: Sequence[int] = ()) -> Drawing:
    """The importance of each layer; layers that go (or went) are hatched. Undefined scores have no bar."""
    known = {layer: score for layer, score in scores.items() if math.isfinite(score)}
    title = "No layer's importance could be measured"
    if known:
        least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        smallest, greatest = (f"{known[layer]:.3g}" for layer in (least, most))
        title = f"Layer {least} changes its input least ({smallest}), layer {most} most ({greatest})"
    figure, axes = _new(title, "importance: 1 − mean cosine similarity of a layer's input and output")
    gone = set(removed)
    for chosen, colour, hatch, label in (
        ([i for i in scores if i not in gone], BLUE, "", "kept"),
        ([i for i in scores if i in gone], ORANGE, "//", "removed"),
    ):
        if chosen:
            heights = [scores[i] for i in chosen]
            axes.bar(chosen, heights, color=colour, hatch=hatch, width=0.85, label=label)
    _value_axis(axes, "importance (0: passive)")
    _layer_axis(axes)
    if gone:
        _legend(axes)
    return figure


def draw_layers(num_layers: int, removed: Sequence[int]) -> Drawing:
    """Which layers stayed and which went."""
    gone = sorted(set(removed))
    kept = [i for i in range(num_layers) if i not in gone]
    shown = ", ".join(map(str, gone[:12])) + (" …" if len(gone) > 12 else "")
    title = f"{len(gone)} of {num_layers} layers removed: {shown}"
    figure, axes = _new(title, "layers from the first to the last", height=2.3)
    axes.bar(kept, [1] * len(kept), color=BLUE, width=0.85, label=f"kept ({len(kept)})")
    axes.bar(gone, [1] * len(gone), color=ORANGE, hatch="//", width=0.85, label=f"removed ({len(gone)})")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _layer_axis(axes)
    _legend(axes)
    return figure


def draw_comparison(values: Mapping[str, float], *, title: str, label: str) -> Drawing:
    """One bar a name, of one quantity."""
    figure, axes = _new(title, label, height=1.5 + 0.42 * max(len(values), 2))
    names = list(values)[::-1]
    colours = [BLUE if name in ("model", "dynamic", "pruned") else GREY for name in names]
    if not {*values} & {"baseline", "dense"}:
        colours = [BLUE] * len(names)
    bars = axes.barh(names, [values[name] for name in names], color=colours, height=0.62)
    axes.bar_label(bars, fmt="{:,.4g}", padding=4, fontsize=9, color=INK)
    axes.set_xlabel(label, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.14)
    return figure


def draw_curves(
    curves: Mapping[int, Sequence[float]], kept: Mapping[int, Sequence[int]] | None = None
) -> Drawing:
    """Each layer's predicted relative error against the share of neurons removed; dots: what was chosen."""
    chosen = {
        layer: len(curves[layer]) - 1 - len(neurons)
        for layer, neurons in (kept or {}).items()
        if layer in curves
    }
    subtitle = "predicted squared error of each layer's output over its square, after the refit"
    figure, axes = _new(_curves_title(curves, chosen), subtitle + ("; dots: this plan" if chosen else ""))
    colours, last = _layer_colours(), max(curves, default=0)
    for layer, curve in sorted(curves.items()):
        size = len(curve) - 1
        colour = colours(layer / max(last, 1))
        axes.plot([100 * i / size for i in range(size + 1)], curve, color=colour, linewidth=1)
        if layer in chosen:
            at = chosen[layer]
            axes.plot([100 * at / size], [curve[at]], "o", color=colour, markersize=4.5, mec="white", mew=0.5)
    axes.set_xlabel("neurons removed (%)", color=INK)
    _value_axis(axes, "relative squared error (logarithmic)")
    axes.set_xlim(0, 100)
    # errors at usual sizes are thousandths of those of an empty layer: on a linear axis they are all 0
    axes.set_yscale("log")
    axes.set_ylim(_least_error(curves, chosen), 1)
    if len(curves) > 1:
        scale = figure.colorbar(ScalarMappable(Normalize(0, last), colours), ax=axes, pad=0.02, aspect=30)
        scale.set_label("layer", color=INK)
        scale.outline.set_visible(False)
        scale.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _layer_colours() -> ListedColormap:
    """``cividis`` without its end, which is too light for a thin line on white."""
    whole = colormaps["cividis"]
    return ListedColormap([whole(step / 290) for step in range(256)], "layers")


def _curves_title(curves: Mapping[int, Sequence[float]], chosen: Mapping[int, int]) -> str:
    if len(curves) < 2:
        return "What the removal of neurons costs the layer"
    at = {layer: chosen.get(layer, round(_USUAL / 100 * (len(curve) - 1))) for layer, curve in curves.items()}
    errors = {layer: curves[layer][number] for layer, number in at.items()}
    least, most = min(errors, key=errors.__getitem__), max(errors, key=errors.__getitem__)
    where = "This plan costs" if chosen else f"Removing {_USUAL} % of its neurons costs"
    return f"{where} layer {most} most ({errors[most]:.2g}), layer {least} least ({errors[least]:.2g})"


def _least_error(curves: Mapping[int, Sequence[float]], chosen: Mapping[int, int]) -> float:
    """Where a log axis of errors begins: below every dot, and not far below a percent of neurons removed."""
    seen = [curve[max(1, len(curve) // 100)] for curve in curves.values()]
    seen += [curves[layer][number] for layer, number in chosen.items()]
    positive = [error for error in seen if error > 0]
    return max(1e-6, min(positive, default=1e-3) / 2)
