"""Figures of a pruning, as PNG files.

Drawn with matplotlib's objects on the Agg canvas: no pyplot, so no global state and no display. The colours
are from Okabe and Ito's palette, which readers with any colour vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
_DPI = 120
_Draw: TypeAlias = "Callable[[Axes], None]"


def load_drawing() -> None:
    """Import what draws and load its fonts, by an empty figure: most of what the first figure takes."""
    _draw(BytesIO(), lambda _: None)


def _save(path: Path, draw: _Draw, *, width: float = 8.0, height: float = 4.5) -> Path:
    _draw(path, draw, width=width, height=height)
    return path


def _draw(target: Path | BytesIO, draw: _Draw, *, width: float = 8.0, height: float = 4.5) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    # no software name and date: the same numbers give the same bytes
    figure.savefig(target, dpi=_DPI, format="png", metadata={"Software": None})


def _layer_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_parameters(path: Path, original: int, pruned: int) -> Path:
    """Two bars: the number of parameters before and after."""

    def draw(axes: Axes) -> None:
        bars = axes.bar(["original", "pruned"], [original / 1e6, pruned / 1e6], color=[GREY, BLUE], width=0.6)
        axes.bar_label(bars, labels=[f"{original:,}", f"{pruned:,}"], padding=3)
        axes.set_ylabel("parameters (millions)")
        axes.set_title(
            f"Parameters before and after: {100 * (original - pruned) / max(original, 1):.2f} % fewer"
        )
        axes.margins(y=0.12)

    return _save(path, draw, width=6.0)


def plot_kept(path: Path, kept: Sequence[int], original: Sequence[int], *, unit: str) -> Path:
    """For each layer, how many ``unit`` (intermediate neurons, heads) stayed of how many there were."""

    def draw(axes: Axes) -> None:
        layers = range(len(kept))
        axes.bar(layers, original, color=GREY, alpha=0.45, width=0.85, label="original")
        axes.bar(layers, kept, color=BLUE, width=0.85, label="kept")
        axes.set_ylabel(unit)
        axes.set_title(f"Kept {unit} per layer: {sum(kept):,} of {sum(original):,}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        _layer_axis(axes)

    return _save(path, draw, width=9.0)


def plot_importance(path: Path, scores: Mapping[int, float], removed: Sequence[int] = ()) -> Path:
    """The importance of each layer; layers that go (or went) are hatched. Undefined scores have no bar."""

    def draw(axes: Axes) -> None:
        gone = set(removed)
        for chosen, colour, hatch, label in (
            ([i for i in scores if i not in gone], BLUE, "", "kept"),
            ([i for i in scores if i in gone], ORANGE, "//", "removed"),
        ):
            if chosen:
                axes.bar(
                    chosen, [scores[i] for i in chosen], color=colour, hatch=hatch, width=0.85, label=label
                )
        axes.set_ylabel("importance (1 − cosine)")
        axes.set_title("Importance of each layer: how much it turns its input")
        if gone:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        _layer_axis(axes)

    return _save(path, draw)


def plot_layers(path: Path, num_layers: int, removed: Sequence[int]) -> Path:
    """Which layers stayed and which went."""

    def draw(axes: Axes) -> None:
        gone = set(removed)
        kept = [i for i in range(num_layers) if i not in gone]
        axes.bar(kept, [1] * len(kept), color=BLUE, width=0.85, label=f"kept ({len(kept)})")
        axes.bar(
            sorted(gone),
            [1] * len(gone),
            color=ORANGE,
            hatch="//",
            width=0.85,
            label=f"removed ({len(gone)})",
        )
        axes.set_yticks([])
        axes.set_title(f"Layers kept: {len(kept)} of {num_layers}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        _layer_axis(axes)

    return _save(path, draw, height=2.6)


def plot_comparison(path: Path, values: Mapping[str, float], *, title: str, label: str) -> Path:
    """One bar a name, of one quantity."""

    def draw(axes: Axes) -> None:
        colours = [GREY, BLUE, ORANGE, GREEN]
        bars = axes.bar(list(values), list(values.values()), color=colours[: len(values)], width=0.6)
        axes.bar_label(bars, fmt="{:,.4g}", padding=3)
        axes.set_ylabel(label)
        axes.set_title(title)
        axes.margins(y=0.12)

    return _save(path, draw, width=6.0)


def _least_error(curves: Mapping[int, Sequence[float]], kept: Mapping[int, Sequence[int]] | None) -> float:
    """Where a log axis of errors begins: below every dot, and not far below a percent of neurons removed."""
    seen = [curve[max(1, len(curve) // 100)] for curve in curves.values()]
    seen += [
        curve[len(curve) - 1 - len(kept[layer])] for layer, curve in curves.items() if kept and layer in kept
    ]
    positive = [error for error in seen if error > 0]
    return max(1e-6, min(positive, default=1e-3) / 2)


def plot_curves(
    path: Path, curves: Mapping[int, Sequence[float]], kept: Mapping[int, Sequence[int]] | None = None
) -> Path:
    """Each layer's predicted relative error against the share of neurons removed; dots: what was chosen.

    Early layers are drawn dark, late ones light.
    """

    def draw(axes: Axes) -> None:
        from matplotlib import colormaps

        colours = colormaps["viridis"]
        for number, (layer, curve) in enumerate(sorted(curves.items())):
            size = len(curve) - 1
            colour = colours(number / max(len(curves) - 1, 1))
            axes.plot([100 * i / size for i in range(size + 1)], curve, color=colour, linewidth=1)
            if kept and layer in kept:
                removed = size - len(kept[layer])
                axes.plot([100 * removed / size], [curve[removed]], "o", color=colour, markersize=4)
        axes.set_xlabel("neurons removed (%)")
        axes.set_ylabel("relative squared error of the layer's output")
        axes.set_title("Predicted error of each layer (dark: first layers; dots: this plan)")
        axes.set_xlim(0, 100)
        # errors at usual sizes are thousandths of those of an empty layer: on a linear axis they are all 0
        axes.set_yscale("log")
        axes.set_ylim(_least_error(curves, kept), 1)

    return _save(path, draw)
