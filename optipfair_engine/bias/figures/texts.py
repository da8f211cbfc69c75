"""Texts in figures, in any script: how wide they are, how they are cut, and which way they run."""

from __future__ import annotations

import textwrap
import unicodedata
from typing import Final

#: First strong isolate, and its end: what stands between runs its own way, and nothing around it turns.
_ISOLATE, _END = "\u2068", "\u2069"
ARROW: Final = " → "


def cells(text: str) -> int:
    """The width of a text in letters: East Asian characters count twice, marks upon others not at all."""
    return sum(_width(letter) for letter in text)


def _width(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shorten(text: str, longest: int = 24) -> str:
    """The text, or as much of it as fits into so many letters, with an ellipsis."""
    if cells(text) <= longest:
        return text
    used, kept = 1, ""
    for letter in text:
        used += _width(letter)
        if used > longest:
            break
        kept += letter
    return kept + "…" + (_END if _ISOLATE in kept and _END not in kept else "")


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """The text in at most so many lines of so many letters each, the last one ending in an ellipsis."""
    if not text.strip():
        return []
    narrow = max(4, int(width * len(text) / max(cells(text), 1)))
    return textwrap.wrap(text, min(width, narrow), max_lines=lines, placeholder=" …")


def runs_right_to_left(text: str) -> bool:
    """Whether any letter of the text belongs to a script that is written from right to left."""
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


def isolated(text: str) -> str:
    """The text so that, put between others, it runs its own way and leaves their order alone."""
    return f"{_ISOLATE}{text}{_END}" if runs_right_to_left(text) else text


def changed_label(first: str, second: str, longest: int = 24) -> str:
    """``first → second``, in this order in any script, in about so many letters."""
    room = longest - len(ARROW)
    if cells(first) + cells(second) > room:
        first = shorten(first, max(room // 2, room - cells(second)))
        second = shorten(second, room - cells(first))
    return f"{isolated(first)}{ARROW}{isolated(second)}"
