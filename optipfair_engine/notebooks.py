"""What notebooks show of results: small tables as HTML, without scripts and styles of their own page.

The values stay what they were: a result is a ``dict``, with a representation more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import Any, Final

#: Rows of a table that stay readable in a cell.
MOST_ROWS: Final = 40
_CELL: Final = "text-align:left;padding:2px 12px 2px 0;white-space:nowrap"
_NUMBER: Final = "text-align:right;padding:2px 12px 2px 0;font-variant-numeric:tabular-nums"
#: Blue of Okabe and Ito's palette, which is read on light and dark pages.
_BAR: Final = "display:inline-block;height:0.7em;background:#0072B2"


class Result(dict[str, Any]):
    """Metrics of a run by name; a notebook shows them as a table, the warnings above."""

    def _repr_html_(self) -> str:
        plain = {name: value for name, value in self.items() if not isinstance(value, Mapping | list | tuple)}
        nested = {name: value for name, value in self.items() if name not in plain and name != "warnings"}
        parts = [_warnings(self.get("warnings") or ()), table(("metric", "value"), plain.items())]
        parts += [_folded(name, value) for name, value in nested.items() if value]
        return "".join(parts)


class LayerScores(dict[int, float]):
    """A score by layer; a notebook shows a bar for each, and the least one marked."""

    def _repr_html_(self) -> str:
        known = [score for score in self.values() if math.isfinite(score)]
        greatest = max(map(abs, known), default=0.0) or 1.0
        least = min(known, default=None)
        rows = [
            (
                layer,
                score,
                Bar(abs(score) / greatest if math.isfinite(score) else 0.0),
                "least" * (score == least),
            )
            for layer, score in self.items()
        ]
        return table(("layer", "importance", "", ""), rows)


class Bar(float):
    """A share of 0…1 that a table shows as a bar."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; numbers stand on the right, and rows beyond the first forty are counted."""
    shown = list(rows)
    cut = len(shown) - MOST_ROWS
    lines = ["".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in head)]
    lines += ["".join(map(_cell, row)) for row in shown[:MOST_ROWS]]
    if cut > 0:
        lines.append(f'<td colspan="{len(head)}" style="{_CELL}">… and {cut} more</td>')
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cell(value: object) -> str:
    if isinstance(value, Bar):
        return f'<td style="{_CELL};width:12em"><span style="{_BAR};width:{12 * value:.2f}em"></span></td>'
    style = _NUMBER if not isinstance(value, bool) and isinstance(value, Real) else _CELL
    return f'<td style="{style}">{escape(words(value))}</td>'


def words(value: object) -> str:
    """A value as people read it: thousands apart, four digits of what isn't whole."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    number = float(value)
    return f"{number:,.1f}" if 1000 <= abs(number) < math.inf else f"{number:.4g}"


def _warnings(found: Iterable[Any]) -> str:
    texts = [item["message"] if isinstance(item, Mapping) else str(item) for item in found]
    return "".join(f'<p style="margin:2px 0"><b>Warning:</b> {escape(text)}</p>' for text in texts)


def _folded(name: str, value: object) -> str:
    """What has an inside of its own, closed until it is clicked."""
    text = json.dumps(value, indent=1, default=str, ensure_ascii=False)
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
