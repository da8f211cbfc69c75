"""Text of others on a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """Text on one line without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
