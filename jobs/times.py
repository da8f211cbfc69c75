"""Times on the wire: RFC 3339 in UTC with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_FIRST, _LAST = (
    (moment.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND for moment in (datetime.min, datetime.max)
)


def rfc3339(milliseconds: int) -> str:
    """`2026-11-23T14:32:00.123Z` for milliseconds since the epoch.

    What lies beyond the years 1 to 9999 is shown as their end: one such row must not break a list.
    """
    seconds, rest = divmod(min(max(milliseconds, _FIRST), _LAST), 1000)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def from_rfc3339(text: str) -> int:
    """Milliseconds since the epoch, rounded down.

    Raises ValueError for anything without a time zone, or outside the years 1 to 9999 of UTC.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone, as in 2026-11-23T14:32:00Z")
    milliseconds = (moment - _EPOCH) // _MILLISECOND
    if not _FIRST <= milliseconds <= _LAST:
        raise ValueError("a time lies between the years 1 and 9999 (UTC)")
    return milliseconds
