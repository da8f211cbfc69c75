"""The byte range of a download (RFC 9110, section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPEC = re.compile(r"(\d{0,18})-(\d{0,18})")


class RangeNotSatisfiableError(Exception):
    """No byte of what was asked for exists: 416."""


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


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The range that a Range header asks of `size` bytes, or None when the whole is to be sent.

    A header with another unit, bad syntax or several ranges is ignored, as the RFC allows: parts of a file
    that is read in order save nothing, and each would cost a read and a head of its own.

    Raises:
        RangeNotSatisfiableError: nothing of what is asked for exists.
    """
    unit, _, rest = (header or "").partition("=")
    match = _SPEC.fullmatch(rest.strip())
    if unit.strip().lower() != "bytes" or match is None or match.group(0) == "-":
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    return _resolve(first, last, size)


def _resolve(first: str, last: str, size: int) -> ByteRange:
    length = min(int(last), size) if not first else 0
    start = int(first) if first else size - length  # "-500": the last 500 bytes
    if start >= size:
        raise RangeNotSatisfiableError
    return ByteRange(start, min(int(last), size - 1) if first and last else size - 1)
