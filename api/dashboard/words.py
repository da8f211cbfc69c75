"""Numbers, sizes and times as people read them: the filters of the dashboard's templates.

``SIZES`` is how much a prune takes away or leaves: what the form's number counts, and how a list says it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final


def number(value: Any) -> str:
    """A metric as text: grouped integers, four significant digits, words for truth values."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def compact(value: float) -> str:
    """A number short enough to stand beside a bar or a gridline."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if limit == 1e4 else limit):.3g}{unit}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def size(count: int) -> str:
    """Bytes in binary units."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def span(seconds: float) -> str:
    """A length of time in one or two units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def ago(milliseconds: int) -> str:
    """How long ago something was; the page's script says the same words as time goes on."""
    seconds = max(milliseconds, 0) / 1000
    if seconds < 10:
        return "just now"
    for limit, unit, word in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {word} ago"
    return f"{int(seconds // 86_400)} days ago"


def words(text: str) -> str:
    """`timed_out` as people write it."""
    return text.replace("_", " ")


def plural(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


FILTERS = {
    "ago": ago,
    "clock": lambda text: text[11:19],
    "compact": compact,
    "moment": lambda text: f"{datetime.fromisoformat(text):%-d %b %Y, %H:%M} UTC",
    "number": number,
    "plural": plural,
    "size": size,
    "span": span,
    "words": words,
}


@dataclass(frozen=True)
class Size:
    """One of the fields of a spec that say how much goes or stays.

    Attributes:
        unit: behind the number in a form.
        short: the number with what it counts, as a format.
    """

    unit: str
    short: str


SIZES: Final = {
    "pruning_percentage": Size("% of neurons, heads, experts", "{:g} %"),
    "expansion_rate": Size("% of hidden size", "expansion {:g} %"),
    "target_parameters": Size("parameters stay", "to {:,} parameters"),
    "target_bytes": Size("bytes stay", "to {:,} bytes"),
    "num_layers_to_remove": Size("layers go", "{} layers"),
    "depth_pruning_percentage": Size("% of layers go", "{:g} % of layers"),
}
