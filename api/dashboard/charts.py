"""Charts as plain data: where bars, lines and ticks are. The template `chart.html` makes SVG of it.

Across, everything is in percent of the width, so that a chart fits a phone without its text shrinking; down,
in pixels. Colours and type come from the style sheet, and with them the dark scheme. See decision 0016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from api.dashboard.words import compact

HEIGHT = 180
_PAD = 0.5  # percent between the edge and the first bar


@dataclass(frozen=True)
class Tick:
    """A word on an axis; `at` in percent across or pixels down."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar; `low` and `high` are the ends of its interval, in pixels down."""

    x: float
    width: float
    y: float
    height: float
    style: str
    says: str
    low: float | None = None
    high: float | None = None

    @property
    def middle(self) -> float:
        """Where its interval stands."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class Line:
    """A path in a box of 100 by HEIGHT."""

    path: str
    style: str


@dataclass(frozen=True)
class Mark:
    """A dot, or an upright line with a word (`text`)."""

    x: float
    y: float
    says: str
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """One chart: the title says what is found, the subtitle what is drawn and in which unit."""

    title: str
    subtitle: str
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    across: Sequence[Tick] = ()
    down: Sequence[Tick] = ()
    across_title: str = ""
    key: Sequence[tuple[str, str]] = ()
    """What the colours mean: (style, words)."""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """The same as a table."""
    choices: Sequence[tuple[int, str]] = ()
    """Shares in percent that one could prune by, and the error that is expected of each."""
    height: int = HEIGHT


@dataclass(frozen=True)
class Scale:
    """From values to pixels down."""

    low: float
    high: float
    log: bool = False
    steps: tuple[float, ...] = field(default=())

    def __call__(self, value: float) -> float:
        """Where a value is drawn; what lies outside is drawn at the edge."""
        place = _log(value, self.low) if self.log else value
        first, last = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = (place - first) / ((last - first) or 1)
        return round(HEIGHT * (1 - min(max(share, 0.0), 1.0)), 2)

    def ticks(self) -> list[Tick]:
        """The gridlines."""
        return [Tick(self(step), _power(step) if self.log else compact(step)) for step in self.steps]


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return compact(value) if -3 < exponent < 4 else f"10{digits}"


def _log(value: float, least: float) -> float:
    return math.log10(max(value, least))


def scale(values: Iterable[float]) -> Scale:
    """A linear scale that holds 0 and all values, with about four round steps."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    if high == low:
        high = low + 1
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    steps = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Scale(steps[0], steps[-1], steps=steps)


def log_scale(values: Iterable[float], least: float = 1e-8) -> Scale:
    """A scale of powers of ten around all values."""
    known = [value for value in values if math.isfinite(value) and value > least] or [1.0]
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first) / 5))
    steps = tuple(10.0**power for power in range(first, last + 1, every))
    return Scale(10.0**first, 10.0**last, log=True, steps=steps)


def slots(count: int) -> tuple[float, float]:
    """The distance from bar to bar, and the width of one, in percent."""
    step = (100 - 2 * _PAD) / max(count, 1)
    return step, min(step * 0.78, 9.0)


def layer_ticks(layers: Sequence[int]) -> list[Tick]:
    """Some of the layers' numbers, below their bars."""
    step, width = slots(len(layers))
    every = max(1, math.ceil(len(layers) / 8))
    return [
        Tick(_PAD + place * step + width / 2, str(layer))
        for place, layer in enumerate(layers)
        if place % every == 0
    ]


def upright(scaled: Scale, values: Sequence[float], styles: Sequence[str], says: Sequence[str]) -> list[Bar]:
    """One bar a value, from 0."""
    step, width = slots(len(values))
    zero, bars = scaled(0), []
    for place, (value, style, text) in enumerate(zip(values, styles, says, strict=True)):
        top = scaled(value)
        bars.append(
            Bar(
                round(_PAD + place * step, 3),
                round(width, 3),
                min(top, zero),
                round(max(abs(top - zero), 0.75), 2),
                style,
                text,
            )
        )
    return bars


def path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path through points (percent across, pixels down)."""
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def sideways(pairs: Sequence[tuple[str, float, str]], *, title: str, subtitle: str) -> Chart:
    """Few values as lying bars with their words: (name, value, style)."""
    most = max((abs(value) for _, value, _ in pairs), default=0) or 1
    bars = [
        Bar(0, max(round(78 * abs(value) / most, 2), 0.5), 44 * row + 18, 18, style, f"{name}: {value:,.4g}")
        for row, (name, value, style) in enumerate(pairs)
    ]
    marks = [
        Mark(bar.width + 1.5, bar.y + 13.5, name, compact(value))
        for bar, (name, value, _) in zip(bars, pairs, strict=True)
    ]
    names = [Tick(44 * row + 12, name) for row, (name, _, _) in enumerate(pairs)]
    rows = [(name, f"{value:,.6g}") for name, value, _ in pairs]
    return Chart(
        title, subtitle, bars=bars, marks=marks, down=names, head=("", subtitle), rows=rows,
        height=44 * len(pairs),
    )  # fmt: skip


def by_layer(
    values: Mapping[int, float], *, title: str, subtitle: str, styles: Mapping[int, str] | None = None
) -> Chart:
    """One upright bar a layer."""
    layers = sorted(values)
    scaled = scale(values.values())
    says = [f"layer {layer}: {values[layer]:.4g}" for layer in layers]
    chosen = [(styles or {}).get(layer, "one") for layer in layers]
    return Chart(
        title,
        subtitle,
        bars=upright(scaled, [values[layer] for layer in layers], chosen, says),
        across=layer_ticks(layers),
        down=scaled.ticks(),
        across_title="layer",
        head=("Layer", subtitle),
        rows=[(str(layer), f"{values[layer]:.6g}") for layer in layers],
    )
