"""Labels beside points so that they don't cover each other: the first free place of a few, nearest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optipfair_engine.bias.figures.texts import cells

_SIZE: Final = 9.0
_DIRECTIONS: Final = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES: Final = (7.0, 16.0, 28.0, 42.0, 60.0)

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point (x, y) of the data."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool


def place_labels(figure: Figure, axes: Axes, labels: Sequence[Label], points: npt.NDArray[Any]) -> None:
    """Write the labels; one that had to move gets a thin line to its point.

    Sizes are estimated from the number of characters (drawing each text to measure it would take longer than
    all the rest), in points at 72 an inch.
    """
    to_points = 72 / float(figure.dpi)
    taken = [_box(x, y, 6, 6) for x, y in np.asarray(axes.transData.transform(points)) * to_points]
    frame = np.asarray(axes.get_window_extent().extents) * to_points
    for label in labels:
        x, y = np.asarray(axes.transData.transform((label.x, label.y))) * to_points
        width, height = cells(label.text) * _SIZE * (0.66 if label.bold else 0.6) + 2, _SIZE * 1.25
        dx, dy = _best_offset(x, y, width, height, np.array(taken), frame)
        taken.append(_box(x + dx, y + dy, width, height))
        _write(axes, label, dx, dy)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _best_offset(
    x: float, y: float, width: float, height: float, taken: Boxes, frame: Boxes
) -> tuple[float, float]:
    """The offset of a label's centre that covers least of what is taken, the near ones first."""
    best, least = (0.0, height), np.inf
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            dx, dy = right * (width / 2 + distance - 3), up * (height / 2 + distance - 4)
            box = _box(x + dx, y + dy, width, height)
            covered = _overlap(box, taken) + 10 * _outside(box, frame)
            if covered == 0:
                return dx, dy
            if covered < least:
                best, least = (dx, dy), covered
    return best


def _overlap(box: tuple[float, float, float, float], taken: Boxes) -> float:
    across = np.minimum(box[2], taken[:, 2]) - np.maximum(box[0], taken[:, 0])
    along = np.minimum(box[3], taken[:, 3]) - np.maximum(box[1], taken[:, 1])
    return float((across.clip(0) * along.clip(0)).sum())


def _outside(box: tuple[float, float, float, float], frame: Boxes) -> float:
    left, bottom, right, top = frame
    return float(
        max(0, left - box[0]) + max(0, bottom - box[1]) + max(0, box[2] - right) + max(0, box[3] - top)
    )


def _write(axes: Axes, label: Label, dx: float, dy: float) -> None:
    moved = abs(dx) + abs(dy) > 30
    axes.annotate(
        label.text,
        (label.x, label.y),
        (dx, dy),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_SIZE,
        color=label.colour,
        fontweight="bold" if label.bold else "normal",
        parse_math=False,
        zorder=4,
        arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.5} if moved else None,
    )
