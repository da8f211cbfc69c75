"""Fonts that have a text's characters: matplotlib's own, then what is installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Final

from matplotlib import font_manager

DEFAULT: Final = "DejaVu Sans"
#: Fonts of symbols and of boxes with numbers in them: having a character there is no help to a reader.
_NO_HELP: Final = ("Last Resort", "STIX", "cm", "DejaVu Math")
#: Of East Asian fonts, which draw one character in several shapes, the one for the text's language.
_LANGUAGES: Final = {"JP": ("\u3040", "\u30ff"), "KR": ("\uac00", "\ud7a3")}


def families(texts: Iterable[str]) -> list[str]:
    """Font families for matplotlib that together have the texts' characters, the default one first.

    Characters that no installed font has are named in a warning.
    """
    found, missing = _cover("".join(sorted({letter for text in texts for letter in text})))
    if missing:
        warnings.warn(_warning(missing), stacklevel=2)
    return list(found)


def warnings_about(texts: Iterable[str]) -> list[str]:
    """A warning, if the texts have characters that no installed font has."""
    missing = _cover("".join(sorted({letter for text in texts for letter in text})))[1]
    return [_warning(missing)] if missing else []


def _warning(characters: str) -> str:
    some = " ".join(characters[:12]) + (" …" if len(characters) > 12 else "")
    return (
        f"No installed font has the characters {some}, so figures show boxes in their place: install a font "
        "of their script, such as one of the Noto Sans family."
    )


@cache
def _cover(characters: str) -> tuple[tuple[str, ...], str]:
    missing = {letter for letter in characters if letter.isprintable()} - _letters(_file(DEFAULT))
    chosen = [DEFAULT]
    for name, file in _candidates(characters) if missing else ():
        has = missing & _letters(file)
        if has:
            chosen.append(name)
            missing -= has
        if not missing:
            break
    return tuple(chosen), "".join(sorted(missing))


@cache
def _look_for_new_fonts() -> None:
    """Matplotlib remembers which fonts there were when it was first used: add those that came since."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for file in set(font_manager.findSystemFonts()) - known:
        with suppress(OSError, RuntimeError):
            font_manager.fontManager.addfont(file)


def _candidates(characters: str) -> list[tuple[str, str]]:
    """Installed fonts (name, file): sans-serif and the text's language first."""
    _look_for_new_fonts()
    language = next(
        (
            name
            for name, (first, last) in _LANGUAGES.items()
            if any(first <= letter <= last for letter in characters)
        ),
        "SC",
    )
    fonts = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and not entry.name.startswith(_NO_HELP)
    }
    return sorted(
        fonts.items(),
        key=lambda font: ("Sans" not in font[0], "Mono" in font[0], not font[0].endswith(language), font[0]),
    )


@cache
def _letters(file: str) -> frozenset[str]:
    """The characters that a font file has."""
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError):  # a font that was removed, or that FreeType can't read
        return frozenset()


def _file(name: str) -> str:
    return str(font_manager.findfont(name))
