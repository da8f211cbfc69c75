"""Which form of an answer the caller wants: the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_RANGES = 64


def choose(accept: str | None, offered: Sequence[str]) -> str | None:
    """The media type among `offered` that the caller likes best; None if it takes none of them.

    Of types that are liked equally, one that is named wins over one that a wildcard takes in, then the
    first one offered.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [parsed for part in accept.split(",")[:_MAX_RANGES] if (parsed := _range(part)) is not None]
    best = max(offered, key=lambda media: _liking(media, ranges))
    return best if _liking(best, ranges)[0] > 0 else None


def _liking(media: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """(quality, how exactly it was named): the most exact range that takes `media` in decides."""
    wide = [media, media.partition("/")[0] + "/*", "*/*"]
    for exactness, pattern in zip((2, 1, 0), wide, strict=True):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found), exactness
    return 0.0, 0


def _range(part: str) -> tuple[str, float] | None:
    """One media range and its quality; None for what is none. Other parameters are left aside."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    if name.count("/") != 1:
        return None
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            return name, _quality(value.strip())
    return name, 1.0


def _quality(text: str) -> float:
    digits = text.replace(".", "", 1)
    return min(float(text), 1.0) if digits.isascii() and digits.isdigit() and len(text) <= 5 else 0.0
