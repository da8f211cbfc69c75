"""Identifiers: RFC 9562 UUIDv7, so that ids sort by the time they were made."""

from __future__ import annotations

import re

import uuid_utils

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_HEX = re.compile(r"[0-9a-f]{1,32}")
_MILLISECOND_BITS = 48


def new_id() -> str:
    """A new lower-case UUIDv7; within one process later ids are always greater."""
    return str(uuid_utils.uuid7())


def is_id(text: str) -> bool:
    """Whether `text` is a UUIDv7 as `new_id` writes it."""
    return _UUID7.fullmatch(text) is not None


def is_text(text: str) -> bool:
    """Whether every character can be printed: no NUL, no control character, no lone surrogate.

    Postgres refuses a NUL even in a comparison, and neither database takes a surrogate.
    """
    return text.isprintable()


def id_range(prefix: str) -> tuple[str, str] | None:
    """The smallest and the greatest id that begin with `prefix`, dashes or not; None if no id can."""
    digits = prefix.replace("-", "").lower()
    if not _HEX.fullmatch(digits):
        return None
    first, last = (_dashed(digits.ljust(32, filler)) for filler in "0f")
    return (first, last) if first.startswith(prefix.lower()) or "-" not in prefix else None


def _dashed(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def lowest_id_at(milliseconds: int) -> str:
    """The smallest UUIDv7 of a millisecond since the epoch: a bound for range scans over ids."""
    bounded = min(max(milliseconds, 0), 2**_MILLISECOND_BITS - 1)
    stamp = f"{bounded:012x}"
    return _dashed(f"{stamp}70008000000000000000")
