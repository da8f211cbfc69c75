"""What all figures share: a canvas with title and prompts, its axes, and files in three formats.

By matplotlib's object interface only: no pyplot, so no global state and no display.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from warnings import catch_warnings, filterwarnings

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from optipfair_engine.bias.figures.kinds import MARGINS, Caption, Style
from optipfair_engine.bias.figures.texts import isolated, shorten, wrapped
from optipfair_engine.figures import BLUE, GREY, INK, ORANGE, VERMILLION, Drawing

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "NOTE",
    "ORANGE",
    "SIDE",
    "TICK",
    "TITLE",
    "VERMILLION",
    "add_axes",
    "new_figure",
    "plain",
    "save",
]

TITLE, NOTE, TICK = 14, 9.5, 9
#: Inches beside the title.
SIDE: Final = 0.35


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write the figure in the format of the file's ending (png, svg, pdf); folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with catch_warnings():
        # one warning names all of them (see fonts.families)
        filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        _save(figure, path, dpi)


def _save(figure: Figure, path: Path, dpi: int) -> None:
    if path.suffix == ".png":
        _save_png(figure, path, dpi)
        return
    # without a date, and with ids that don't hang on chance, the same figure gives the same bytes
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


def new_figure(
    size: tuple[float, float], style: Style, title: str, subtitle: str, caption: Caption | None = None
) -> Drawing:
    """A figure with its title on top and, with a caption, both prompts at its foot."""
    width, height = style.figsize or size
    figure = Drawing(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        SIDE / width, 1 - 0.18 / height, title,
        fontsize=TITLE, fontweight="bold", color=INK, va="top", parse_math=False,
    )  # fmt: skip
    figure.text(
        SIDE / width, 1 - 0.5 / height, subtitle, fontsize=NOTE, color="#555555", va="top", parse_math=False
    )
    if caption is not None:
        figure.text(
            SIDE / width, 0.14 / height, "\n".join(_prompts(caption, width)),
            fontsize=NOTE, color=INK, va="bottom", parse_math=False,
        )  # fmt: skip
    return figure


def _prompts(caption: Caption, inches: float) -> list[str]:
    room = max(20, int((inches - 0.9) * 72 / (NOTE * 0.56)))
    lines = []
    for number, prompt in (("1", caption.first), ("2", caption.second)):
        first, *others = wrapped(prompt, room - 4, 2) or ["(empty)"]
        lines += [f"{number}: {isolated(first)}", *(f"    {isolated(line)}" for line in others)]
    return [*lines, shorten(caption.note, room)] if caption.note else lines


def add_axes(figure: Figure, kind: str) -> Axes:
    """Axes with margins in inches: text has a size in inches too, whatever the figure's."""
    left, right, bottom, top = MARGINS[kind]
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )


def plain(axes: Axes) -> None:
    """Two thin spines and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=TICK, color=GREY)
