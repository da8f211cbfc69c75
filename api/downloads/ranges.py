"""Byte ranges of a download (RFC 9110, section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

MAX_RANGES = 16
_SPEC = re.compile(r"(\d{0,18})-(\d{0,18})")


class RangeNotSatisfiableError(Exception):
    """No byte of what was asked for exists, or too much of it was asked for: 416."""


@dataclass(frozen=True)
class ByteRange:
    """The bytes `first` to `last`, both included, as HTTP counts them."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.last - self.first + 1

    def content_range(self, size: int) -> str:
        """The value of the Content-Range header."""
        return f"bytes {self.first}-{self.last}/{size}"


def parse_ranges(header: str | None, size: int) -> list[ByteRange] | None:
    """The ranges that a Range header asks of `size` bytes, or None when the whole is to be sent.

    A header with another unit or bad syntax is ignored, as the RFC says. Many or overlapping ranges are
    refused, since each costs a read and a part header (RFC 9110, section 17.15).

    Raises:
        RangeNotSatisfiableError: nothing asked for exists, more than 16 ranges, or ranges that overlap.
    """
    if header is None:
        return None
    unit, separator, rest = header.partition("=")
    if not separator or unit.strip().lower() != "bytes":
        return None
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    if len(parts) > MAX_RANGES:
        raise RangeNotSatisfiableError
    matches = [_SPEC.fullmatch(part) for part in parts]
    if not parts or any(match is None or match.group(0) == "-" for match in matches):
        return None
    asked = [(match.group(1), match.group(2)) for match in matches if match is not None]
    if any(first and last and int(first) > int(last) for first, last in asked):
        return None
    found = [r for r in (_resolve(first, last, size) for first, last in asked) if r is not None]
    if not found or _overlap(found):
        raise RangeNotSatisfiableError
    return found


def _resolve(first: str, last: str, size: int) -> ByteRange | None:
    """One range against the size; None when none of it exists."""
    if not first:  # "-500": the last 500 bytes
        length = min(int(last), size)
        return ByteRange(size - length, size - 1) if length else None
    if int(first) >= size:
        return None
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1)


def _overlap(ranges: list[ByteRange]) -> bool:
    ordered = sorted(ranges, key=lambda r: r.first)
    return any(b.first <= a.last for a, b in pairwise(ordered))
